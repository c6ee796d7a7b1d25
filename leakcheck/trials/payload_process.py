"""One process of a payload that is watched from outside, and whether it still executes anything."""

import select
import time
from pathlib import Path

import msgspec

from injectors.alive import executes

__all__ = ["Life", "arguments", "now", "readable", "runs_on"]


class Life(msgspec.Struct):
    """A process of the payload of contender `number`: a pidfd, and when it was alive first and last (seconds).

    `holds`: it is the one that waits, and the payload ends if it is ended.
    """

    number: int
    pid: int
    pidfd: int
    first: float
    last: float
    holds: bool
    over: bool = False
    killed: bool = False


def now() -> float:
    """Return the seconds since the machine's start."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def arguments(pid: int) -> bytes:
    """Return the arguments of a process, each with a zero behind it; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def readable(pidfd: int) -> bool:
    """Return whether the process of a pidfd has ended (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def runs_on(life: Life) -> bool:
    """Return whether it is alive, and no kill is on its way to it: such a process executes nothing any more."""
    # Only after a look at its number is it known that this was of it.
    return executes(life.pid) and not readable(life.pidfd)
