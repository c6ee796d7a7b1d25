"""Waiting for events instead of some time. The bound ends a test that would hang; no machine is so slow or busy."""

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

PATIENCE = 120.0


def wait_until(what: str, holds: Callable[[], object]) -> None:
    """Wait until something holds that has no event of its own."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"not in {PATIENCE:.0f} s: {what}"
        time.sleep(0.01)


def runs_below(pid: int, command: list[str]) -> bool:
    """Whether a process has a descendant that runs this command."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline() == command:
                return True
    return False


def wait_for_runs(pid: int, name: str, number: int) -> None:
    """Wait until this many processes of a name have been seen below a process, at whatever time."""
    seen = set()

    def were_there() -> bool:
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.name() == name:
                    seen.add((process.pid, process.create_time()))
        return len(seen) >= number

    wait_until(f"{number} of {name}", were_there)
