"""The process group of the guarded command, and its use of the terminal.

``kill 0`` in the command reaches that group and not us (kill(2)). If there is a terminal, the shell gave it to our
group. The command gets it when it reads from it, like a job brought to the foreground, and returns it when it stops or
ends (credentials(7), tcsetpgrp(3)).
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Generator
from typing import Self


class Group:
    """A process group that has no members yet.

    Its leader is a process that has exited and is reaped last, so that no other group can get the number until then and
    the command is not the leader, for which setsid(2) would fail. Without a shell, the command is the leader.
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
            if _foreground(terminal) == self.id:
                _give(terminal, os.getpgrp())
        if self._leader is not None:
            self._leader.wait()

    def joined(self, pid: int) -> None:
        """Record the command's process id; it is not reaped yet."""
        self.id = self.id or pid

    def send(self, number: int) -> None:
        """Send a signal to all members."""
        os.killpg(self.id, number)

    def stopped(self, pid: int) -> None:
        """If the command stopped because of the terminal, give it the terminal; if we do not have it, stop as well."""
        try:
            found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            # It has exited: only then is there something to wait for (waitid(2)).
            return
        if found is None or found.si_status not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP):
            return
        with _terminal() as terminal:
            had = _foreground(terminal) == self.id
            if had:
                _give(terminal, os.getpgrp())
            wants = found.si_status != signal.SIGTSTP
            if not wants or _foreground(terminal) != os.getpgrp():
                # The signal that the terminal would have sent to all of us; if it did, the others already got it.
                went_on = suspend(found.si_status, os.getpid() if not wants and not had else 0)
                if wants and not went_on:
                    # There is no shell with job control, so a stopped job would stay stopped (setpgid(2)).
                    self.send(signal.SIGHUP)
            if (wants or had) and _foreground(terminal) == os.getpgrp():
                self.had_terminal = True
                _give(terminal, self.id)
        self.send(signal.SIGCONT)


def suspend(number: int, target: int) -> bool:
    """Stop this process, or with 0 its whole group; return when it continues, or False if it could not be stopped.

    The shell has the terminal until then. A group without a shell cannot be stopped (signal(7), orphaned groups).
    """
    continued: list[int] = []
    before = signal.signal(signal.SIGCONT, lambda number, _: continued.append(number))
    default = signal.signal(number, signal.SIG_DFL)
    try:
        os.kill(target, number)
        # The signal that continued us is delivered by now; its handler runs before the next call returns.
        signal.sigpending()
    finally:
        signal.signal(number, default)
        signal.signal(signal.SIGCONT, before)
    return bool(continued)


def _foreground(terminal: int) -> int | None:
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None


def _give(terminal: int, group: int) -> None:
    # A background process that does not ignore or block SIGTTOU is stopped by this call (tcsetpgrp(3)).
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _terminal() -> Generator[int, None, None]:
    """Open our controlling terminal (tty(4)); yield -1 if there is none."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        yield terminal
    finally:
        os.close(terminal)
