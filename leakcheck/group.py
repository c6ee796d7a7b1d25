"""The process group that a guarded command has for itself, and its dealings with the terminal.

``kill 0`` in the command reaches that group and not us (kill(2)). Where there is a terminal, the shell gave it to our
group: the command gets it when it reads from it, as a job that is brought to the foreground does, and gives it back
when it stops or ends (credentials(7), tcsetpgrp(3)).
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Generator
from typing import Self

__all__ = ["Group", "suspend"]


class Group:
    """A process group without members yet.

    Its leader is a process that has ended and is waited for last: then no other group can get the number meanwhile,
    and the command is no leader, for which setsid(2) would fail. Where there is no shell, the command leads it.
    """

    def __enter__(self) -> Self:
        self.id = 0
        self.had_terminal = False
        self._leader: subprocess.Popen[bytes] | None = None
        null = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            shell = ["/bin/sh", "-c", ":"]
            self._leader = subprocess.Popen(shell, stdin=null, stdout=null, stderr=null, process_group=0)
            self.id = self._leader.pid
            os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT)
        return self

    def __exit__(self, *_: object) -> None:
        with _terminal() as terminal:
            if terminal is not None and _foreground(terminal) == self.id:
                _give(terminal, os.getpgrp())
        if self._leader is not None:
            self._leader.wait()

    def joined(self, pid: int) -> None:
        """Take note of the command's process id; it has not been waited for."""
        self.id = self.id or pid

    def send(self, number: int) -> None:
        """Send a signal to all members."""
        os.killpg(self.id, number)

    def stopped(self, pid: int) -> None:
        """If the command is stopped over the terminal, give it the terminal, or stop as well if we have not got it."""
        try:
            found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            # It has ended: of that alone is there something to wait for (waitid(2)).
            return
        if found is None or found.si_status not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP):
            return
        with _terminal() as terminal:
            had = _foreground(terminal) == self.id
            if had:
                _give(terminal, os.getpgrp())
            wants = found.si_status != signal.SIGTSTP
            if not wants or _foreground(terminal) != os.getpgrp():
                # What the terminal would have sent to all of us; where it did, the others have got it already.
                went_on = suspend(found.si_status, os.getpid() if not wants and not had else 0)
                if wants and not went_on:
                    # No shell of ours takes care of jobs, and a stopped one would stay so (setpgid(2)).
                    self.send(signal.SIGHUP)
            if (wants or had) and _foreground(terminal) == os.getpgrp():
                self.had_terminal = True
                _give(terminal, self.id)
        self.send(signal.SIGCONT)


def suspend(number: int, target: int) -> bool:
    """Stop this process, or with 0 all of its group, and return when it goes on; False if it could not be stopped.

    The shell has the terminal meanwhile. A group without a shell cannot be stopped (signal(7), orphaned groups).
    """
    continued: list[int] = []
    before = signal.signal(signal.SIGCONT, lambda number, _: continued.append(number))
    default = signal.signal(number, signal.SIG_DFL)
    try:
        os.kill(target, number)
        # The signal that continued us is taken by now, and its handler runs before the next call returns.
        signal.sigpending()
    finally:
        signal.signal(number, default)
        signal.signal(signal.SIGCONT, before)
    return bool(continued)


def _foreground(terminal: int | None) -> int | None:
    if terminal is None:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None


def _give(terminal: int | None, group: int) -> None:
    if terminal is None:
        return
    # Who is in the background and not immune is stopped by this call (tcsetpgrp(3)).
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _terminal() -> Generator[int | None, None, None]:
    """Open our controlling terminal, if there is one (tty(4))."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield terminal
    finally:
        os.close(terminal)
