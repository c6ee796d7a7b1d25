"""A clean sandbox on a busy host is called clean, every time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leakcheck import _native

RUNS = 1000
LEAKING_RUNS = 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="others' processes cannot be read: the verdict is unknown")


def descent_is_known() -> bool:
    sources = json.loads(_native.doctor(kinds="process"))["sources"]
    return any(source["name"] == "forks and exits" and source["level"] == "full" for source in sources)


# Outside of a pid namespace others work too, in the same network and IPC namespace, and nothing tells who they are.
needs_descent = pytest.mark.skipif(
    not descent_is_known() or not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n",
    reason="a pid namespace, or not every fork is told: an orphan or a socket could be anybody's",
)


def amid_noise(*options: str, runs: int) -> list[dict]:
    # Init may take two seconds to reap what bubblewrap leaves to it, and a run is not over before: hence many at once.
    argv = [sys.executable, Path(__file__).with_name("guards.py"), "--at-once", "20", *options, str(runs)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=290, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["runs"] for line in lines if "runs" in line) == runs
    return lines


@needs_root
@needs_descent
@pytest.mark.parametrize("runs", [RUNS // 20, pytest.param(RUNS, marks=pytest.mark.slow)])
def test_guards_of_a_clean_run_raise_no_alarm_amid_noise(runs: int) -> None:
    lines = amid_noise("--by-command", str(runs // 25), runs=runs)
    print(lines[-1], *(line["mean"] for line in lines if "mean" in line), sep="\n")
    assert [line for line in lines if "verdict" in line] == []
    assert sum(line["noise"] for line in lines if "noise" in line) > runs, "there was noise to be told from the runs"


@needs_root
@needs_descent
def test_amid_the_same_noise_a_file_that_a_run_leaves_is_named_and_nothing_else() -> None:
    lines = amid_noise("--leaking", runs=LEAKING_RUNS)
    assert [line for line in lines if "verdict" in line] == []
