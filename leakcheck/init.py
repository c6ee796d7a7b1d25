"""PID 1 of a container: it must reap every process that exits there without another parent, or zombies stay."""

import contextlib
import os
import signal


def as_init() -> None:
    """Continue in a child of this process; the parent reaps everything that exits and forwards signals.

    The parent exits with the child's code, which ends the container (pid_namespaces(7)). Call this before the process
    has any thread, or any handler that matters to the parent.
    """
    # The kernel ignores signals without a handler for PID 1; sigwait() still receives them.
    passed = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTTIN, signal.SIGTTOU}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            # The terminal's signals are for the child only.
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(passed)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        code = _ended(child)
        if code is not None:
            os._exit(code)


def _ended(child: int) -> int | None:
    """Reap everything that has exited; return the exit code of `child` once it has exited, 128+N for signal N."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG | os.WUNTRACED)) != (0, 0):
            pid, status = found
            if pid == child and os.WIFSTOPPED(status):
                # There is no shell to continue it.
                os.kill(child, signal.SIGCONT)
            elif pid == child:
                ended = os.waitstatus_to_exitcode(status)
                code = ended if ended >= 0 else 128 - ended
    return code
