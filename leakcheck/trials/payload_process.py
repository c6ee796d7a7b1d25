"""One process of a payload that is watched from outside, and whether it still executes anything."""

import select
import signal
import time
from pathlib import Path

import msgspec

__all__ = ["Life", "arguments", "now", "readable", "runs_on"]

# Of the flags of a process, in field 9 of its stat: it exits, or a signal killed it (proc(5), linux/sched.h).
_ENDING = 0x4 | 0x400
_SIGKILL = 1 << (signal.SIGKILL - 1)


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
    try:
        fields = Path(f"/proc/{life.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{life.pid}/status").read_text()
    except OSError:
        return False
    pending = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    dying = fields[0] in "ZX" or int(fields[6]) & _ENDING or any(int(one, 16) & _SIGKILL for one in pending)
    # Only now is it known that all this was of this process.
    return not dying and not readable(life.pidfd)
