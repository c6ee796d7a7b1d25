"""Whether a process still executes anything, by what the kernel shows of it (proc_pid_stat(5))."""

import signal
from pathlib import Path

__all__ = ["executes"]

# Of its flags: it exits, or a signal killed it (linux/sched.h).
_ENDING = 0x4 | 0x400
_SIGKILL = 1 << (signal.SIGKILL - 1)


def executes(pid: int) -> bool:
    """Return whether it is alive and no kill is on its way to it; false, too, if there is none of this number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    pending = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return not (fields[0] in "ZX" or int(fields[6]) & _ENDING or any(int(one, 16) & _SIGKILL for one in pending))
