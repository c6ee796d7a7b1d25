"""What Python keeps for its life is no test's leak, and what a test leaves beside it still is."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from places import Place, as_nobody

__all__ = ["as_nobody"]

INPUTS = Path(__file__).parent / "inputs"
# What it makes has to go, however the suite ends.
WORKERS = """
import os, socket, subprocess, tempfile, time
import pytest
kept = []

@pytest.fixture(autouse=True)
def together():
    # All workers leak at the same time.
    open(f"/tmp/at-{os.environ['PYTEST_XDIST_WORKER']}", "w").close()
    until = time.monotonic() + 30
    while len([name for name in os.listdir("/tmp") if name.startswith("at-")]) < 4 and time.monotonic() < until:
        time.sleep(0.01)

@pytest.mark.parametrize("what", ["file", "directory", "descriptor", "socket"])
def test_leaving(what):
    if what == "file":
        os.close(tempfile.mkstemp(prefix="left-file")[0])
    elif what == "directory":
        tempfile.mkdtemp(prefix="left-directory")
    elif what == "descriptor":
        kept.append(open("/etc/passwd"))
    else:
        kept.append(socket.socket(socket.AF_UNIX))
        kept[-1].bind("/tmp/left-socket")
"""
LEAKING = """
import multiprocessing, os, signal, subprocess, sys
import pytest

@pytest.fixture(scope="session")
def children():
    pids = []
    yield pids
    for child in pids:
        child.kill()
        child.wait()

def idle():
    pass

def test_helper():
    process = multiprocessing.get_context("forkserver").Process(target=idle)
    process.start()
    process.join()

def test_its_name_is_no_excuse(children):
    code = "import time; time.sleep(600) # from multiprocessing.resource_tracker import main;main(3)"
    children.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL))

def test_nor_is_its_directory(children):
    from multiprocessing import util
    open(os.path.join(util.get_temp_dir(), "left"), "w").close()
"""


def run(directory: Path, *options: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "LEAKCHECK"))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--leakcheck",
        "-o",
        "leakcheck_settle=0.1",
        *options,
    ]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_helpers_of_multiprocessing_are_listed_and_blamed_on_nobody(tmp_path: Path) -> None:
    (tmp_path / "test_helpers.py").write_bytes((INPUTS / "helpers_suite.py").read_bytes())
    some = "shared_memory or forkserver or manager or popen_not_waited or mp_lock"
    output = run(tmp_path, "-k", some, "test_helpers.py")
    assert "5 passed" in output and "LEAKED" not in output, output
    for reason in ("resource tracker", "fork server", "directory for sockets", "reaps when it starts the next"):
        assert reason in output, output


def test_a_leak_beside_them_is_still_blamed(tmp_path: Path) -> None:
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    output = run(tmp_path, "test_leaking.py")
    assert "1 passed" in output and "2 leaked" in output, output
    assert "LEAKED test_leaking.py::test_its_name_is_no_excuse" in output, output
    assert "LEAKED test_leaking.py::test_nor_is_its_directory" in output and "/left" in output, output


def test_workers_of_an_ordinary_user_blame_no_namespace_of_the_machine(as_nobody: Place) -> None:
    pytest.importorskip("xdist")
    suite = "def test_one(): pass\\ndef test_two(): pass\\n"
    script = (
        f"mkdir /tmp/s && cd /tmp/s && printf '{suite}' >test_s.py && pytest -q -n 2 --leakcheck -p no:cacheprovider"
    )
    done = as_nobody("sh", "-c", script)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "2 passed" in output and "namespace" not in output, output


def test_workers_of_an_ordinary_user_blame_each_leak_on_the_test_whose_line_made_it(as_nobody: Place) -> None:
    pytest.importorskip("xdist")
    script = (
        f"mkdir /tmp/s && cd /tmp/s && printf %s {shlex.quote(WORKERS)} >test_s.py && "
        "pytest -q -n 4 --leakcheck -p no:cacheprovider"
    )
    output = as_nobody("sh", "-c", script).stdout
    assert "4 leaked" in output, output
    blamed: dict[str, str] = {}
    for line in output.partition("left something behind")[2].splitlines():
        if line.startswith("LEAKED "):
            test = line
        elif "left-" in line or "/etc/passwd" in line:
            blamed[test] = blamed.get(test, "") + line
    for what, (name, number) in {
        "file": ("left-file", 17),
        "directory": ("left-directory", 19),
        "descriptor": ("/etc/passwd", 21),
        "socket": ("left-socket", 24),
    }.items():
        (found,) = [lines for test, lines in blamed.items() if f"[{what}]" in test]
        assert name in found and f"made at test_s.py:{number}" in found, output
    assert not any("left-" in line for line in output.partition("leakcheck: unattributed")[2].splitlines()), output
