"""The same facts as leakcheck's process and FD kinds, from the usual tools."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

#: Start time in seconds since the epoch, state, parent, and the target of each FD by its number.
Seen = tuple[float, str, int, dict[int, str]]

STATES = {
    "R": psutil.STATUS_RUNNING,
    "S": psutil.STATUS_SLEEPING,
    "D": psutil.STATUS_DISK_SLEEP,
    "T": psutil.STATUS_STOPPED,
    "t": psutil.STATUS_TRACING_STOP,
    "Z": psutil.STATUS_ZOMBIE,
    "I": psutil.STATUS_IDLE,
}


def with_psutil(*, fresh: bool = True) -> dict[int, Seen]:
    """What a psutil user writes; psutil itself lists the targets of regular files only.

    Args:
        fresh: read each start time, instead of returning the one that an earlier call has read.
    """
    if fresh:
        psutil.process_iter.cache_clear()
    found: dict[int, Seen] = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                start, state, parent = process.create_time(), process.status(), process.ppid()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = (start, state, parent, targets(process.pid))
    return found


def until_blocked(pids: Iterable[int]) -> None:
    """Returns when none of these runs any more: two lists that are taken in turn should have the same states."""
    deadline = time.monotonic() + 30
    for pid in pids:
        while psutil.Process(pid).status() == psutil.STATUS_RUNNING:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} still runs")
            os.sched_yield()


def targets(pid: int) -> dict[int, str]:
    """The target of each FD of one process."""
    found: dict[int, str] = {}
    folder = f"/proc/{pid}/fd/"
    try:
        numbers = os.listdir(folder)  # noqa: PTH208 (pathlib would make psutil's side slower)
    except OSError:
        return found
    for number in numbers:
        try:
            found[int(number)] = os.readlink(folder + number)  # noqa: PTH115
        except OSError:  # Closed since, or PID 1, which may refuse even root.
            continue
    return found


def with_command(argv: list[str]) -> None:
    """Runs a lister, its output to a file."""
    with Path("/dev/null").open("wb") as sink:
        # lsof ends with 1 when anything could not be read.
        subprocess.run(argv, stdout=sink, stderr=sink, check=False)


def of_native(snapshot: Any, pids: Container[int]) -> dict[int, Seen]:
    """The records of some processes in a leakcheck snapshot, in psutil's terms."""
    ticks = os.sysconf("SC_CLK_TCK")
    boot = psutil.boot_time()
    fds: dict[int, dict[int, str]] = {}
    for fd in snapshot.resources("fd"):
        if fd["pid"] in pids and fd["table"] == fd["pid"]:
            fds.setdefault(fd["pid"], {})[fd["fd"]] = fd["target"]
    return {
        p["pid"]: (p["start"] / ticks + boot, STATES[p["state"]], p["ppid"], fds.get(p["pid"], {}))
        for p in snapshot.resources("process")
        if p["pid"] in pids
    }
