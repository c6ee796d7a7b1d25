"""What a guarded pytest test takes, beside the same test alone and beside a fixture that compares before and after.

All of them run in namespaces that show no other process, with a `/tmp` of their own: 70,000 files in 700 directories.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Row

TESTS = 40
FILES = 70_000
IN_EACH = 100

CONFTEST = """
import os, time, psutil, pytest

times, began = [], 0.0

def pytest_runtest_logstart():
    global began
    began = time.perf_counter()

def pytest_runtest_logfinish():
    times.append(time.perf_counter() - began)

def pytest_sessionfinish():
    with open(os.environ["TIMES"], "w") as file:
        print(*times, file=file)

def lists():
    descriptors = {number: target(number) for number in os.listdir("/proc/self/fd")}
    processes = {(one.pid, one.create_time()) for one in psutil.process_iter()}
    files = set()
    if "file" in LISTS:
        for top, below, names in os.walk("/tmp"):
            files |= {os.path.join(top, name) for name in (*below, *names)}
    return descriptors, processes, files

def target(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return None

LISTS = os.environ.get("LISTS", "")

if LISTS:
    @pytest.fixture(autouse=True)
    def compared():
        before = lists()
        yield
        after = lists()
        ours = {one.pid for one in psutil.Process().children()}
        assert not [pid for pid, _ in after[1] - before[1] if pid in ours]
        assert before[0].keys() == after[0].keys() and not after[2] - before[2]
"""
SUITE = f"""
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_it(number, request):
    pass
"""
CONTESTANTS: dict[str, tuple[list[str], str]] = {
    "plain": ([], ""),
    "--leakcheck=process,fd": (["--leakcheck=process,fd"], ""),
    "psutil in a fixture: processes, FDs": ([], "process,fd"),
    "--leakcheck=process,fd,file": (["--leakcheck=process,fd,file"], ""),
    "psutil and os.walk in a fixture: processes, FDs, names of files": ([], "process,fd,file"),
}
LIMITS = {"--leakcheck=process,fd": 8.0, "--leakcheck=process,fd,file": 25.0}


def rows(rounds: int) -> list[Row]:
    """The rows; none is measured without the right to mount."""
    if os.geteuid() != 0:
        return [Row("one test of a pytest suite", "", "needs root, to mount a /tmp", "", "", None)]
    namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    own_tmp = 'mount -t tmpfs none /tmp && "$@"'
    argv = ["unshare", *namespaces, "sh", "-c", own_tmp, "sh", sys.executable, __file__]
    done = subprocess.run([*argv, str(rounds)], stdout=subprocess.PIPE, text=True, check=True)
    medians: dict[str, float] = json.loads(done.stdout)
    plain = medians.pop("plain")
    what = f"one pytest test that does nothing, {FILES:,} files in `/tmp`"
    out = [Row(what, "`pytest`", f"{plain:.2f} ms")]
    for name, median in medians.items():
        limit = LIMITS.get(name)
        more = median - plain
        target, passed = (f"≤ {limit:g} ms more", more <= limit) if limit else ("", None)
        shown = f"`pytest {name}`" if limit else name
        out.append(Row(what, shown, f"{median:.1f} ms", f"{more:.1f} ms more", target, passed))
    return out


def main() -> int:
    """Prints the median of each contestant's tests. Runs in the namespaces."""
    for number in range(FILES // IN_EACH):
        directory = Path(f"/tmp/{number}")
        directory.mkdir()
        for name in range(IN_EACH - 1):
            (directory / str(name)).touch()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        (Path(place) / "conftest.py").write_text(CONFTEST)
        (Path(place) / "test_it.py").write_text(SUITE)
        runs = {name: lambda one=one: session(Path(place), *one) for name, one in CONTESTANTS.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(int(sys.argv[1])):
            for name, run in runs.items():
                # The first test of a session lists everything.
                times[name].extend(run()[1:])
    print(json.dumps({name: statistics.median(each) * 1000 for name, each in times.items()}))
    return 0


def session(place: Path, options: list[str], lists: str) -> list[float]:
    """The times of a session's tests, in seconds."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, str(place)]
    into = place / "times"
    environment = os.environ | {"TIMES": str(into), "LISTS": lists}
    subprocess.run(argv, env=environment, cwd=place, stdout=subprocess.DEVNULL, check=True)
    return [float(each) for each in into.read_text().split()]


if __name__ == "__main__":
    sys.exit(main())
