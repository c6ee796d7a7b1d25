"""Whatever becomes of stdout, stderr, the locale and Ctrl-C: no traceback, and one line if it can be said."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LEAKCHECK = f"{shlex.quote(sys.executable)} -m leakcheck"
SCRIPT = str(Path(sys.executable).parent / "leakcheck")
GUARD = "guard --kinds process --settle 0.05 -- true"
COMMANDS = [
    GUARD,
    "guard --kinds process --settle 0.05 --json -- true",
    "snapshot --kinds process",
    "snapshot --kinds process --json",
    "--help",
    "--version",
    "reap --diff /nonexistent",
    "diff /nonexistent /nonexistent",
    "doctor --kinds process",
    "nonsense",
]


def shell(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False, **options)


def is_calm(done: subprocess.CompletedProcess[str]) -> None:
    for sign in ("Traceback", "Exception", "Error:", "panicked", "Aborted"):
        assert sign not in done.stderr, done.stderr


def test_the_case_of_stderr_gone_has_its_report(case: Callable[..., Any]) -> None:
    done = case("sh", "{stderr_gone.sh}")
    assert done.text.count("report written") == 2
    assert "MISSING" not in done.text
    assert done.exits == [0, 0]


@pytest.mark.parametrize("gone", [">&-", "2>&-", ">/dev/full", "2>/dev/full", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_no_stream_that_is_gone_makes_a_traceback(gone: str) -> None:
    for command in COMMANDS[:: 1 if gone == ">/dev/full" else 3]:
        done = shell(
            f"{LEAKCHECK} {command.replace(' -- ', f' {gone} -- ') if ' -- ' in command else f'{command} {gone}'}"
        )
        is_calm(done)
        assert done.returncode in (0, 2, 3)
        assert len(done.stderr.splitlines()) <= 3


def test_a_pipe_that_is_not_read_to_its_end_makes_no_traceback() -> None:
    for command in (
        "snapshot --kinds process,fd --json",
        "--help",
        "guard --kinds process --settle 0.05 --json -- true",
    ):
        done = shell(f"{LEAKCHECK} {command} | head -c 1 >/dev/null")
        is_calm(done)
        assert len(done.stderr.splitlines()) <= 2


def test_a_leak_that_could_not_be_printed_is_a_leak_still(tmp_path: Path) -> None:
    leak = f"sh -c 'sleep 300 </dev/null >/dev/null 2>&1 & echo $! >{tmp_path}/pid'"
    for gone in ("2>/dev/full", "2>&-", "--json >/dev/full", "--json >&-"):
        done = shell(f"{LEAKCHECK} guard --kinds process --settle 0.05 {gone} -- {leak}")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert done.returncode == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "POSIX"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_a_locale_of_ascii_is_enough(environment: dict[str, str], tmp_path: Path) -> None:
    env = {**os.environ, **environment}
    for command in COMMANDS[:6]:
        done = shell(f"{LEAKCHECK} {command}", env=env)
        is_calm(done)
        assert done.returncode == 0, done.stderr
    left = os.fsencode(tmp_path) + "/lëft-日本-".encode() + b"\xff"
    guard = f"{LEAKCHECK} guard --kinds file --roots {tmp_path} --settle 0.05"
    done = shell(f'{guard} -o {tmp_path.parent}/é.json -- touch "$LEFT"', env={**env, "LEFT": os.fsdecode(left)})
    is_calm(done)
    assert done.returncode == 1, done.stderr
    assert "ft-" in done.stderr
    (tmp_path.parent / "é.json").unlink()


@pytest.mark.parametrize("imported", ["re", "leakcheck", "leakcheck.allow", "typer", "rich.console", "leakcheck.cli"])
def test_ctrl_c_leaves_no_traceback_while_python_imports(imported: str) -> None:
    # The interpreter tells of each module once it is there; the first of ours says that we have begun.
    command = [sys.executable, "-X", "importtime", "-m", "leakcheck", *GUARD.split()]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    begun = False
    for line in process.stderr:
        module = line.rpartition("|")[2].strip()
        begun = begun or module.startswith(("leakcheck.", "msgspec", "typer"))
        if begun and (module == imported or imported in ("re", "leakcheck")):
            break
    process.send_signal(signal.SIGINT)
    told = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.wait(timeout=60) == 130
    assert told == [] or told[0].startswith("leakcheck: interrupted")
    assert len(told) <= 1, told


def test_the_command_is_ready_for_ctrl_c_before_it_imports_anything_that_takes_time() -> None:
    script = "import sys; import leakcheck.__main__; print(*[m for m in sys.modules if '.' not in m])"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"typing", "msgspec", "rich", "typer", "subprocess"} & set(modules) - {"typing"}
    assert (Path(SCRIPT).read_text()).count("leakcheck.__main__") == 1
