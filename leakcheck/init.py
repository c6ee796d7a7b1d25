"""PID 1 of a container: what ends there and has no other parent, it has to wait for, or zombies stay."""

import contextlib
import os
import signal

__all__ = ["as_init"]


def as_init() -> None:
    """Go on as a child of this process, which from now on waits for whatever ends, and passes signals on.

    It exits with the child's code, and with it the container ends (pid_namespaces(7)). Nothing else runs yet in this
    process: no thread, no handler that matters to the parent.
    """
    # A kernel that ignores a signal without a handler for PID 1 lets it be taken like this.
    passed = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTTIN, signal.SIGTTOU}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            # The terminal's signals are for the child alone.
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
    """Wait for all that has ended; return the exit code of `child` once it has, 128+N for signal N."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                break
            if pid != child:
                continue
            if os.WIFSTOPPED(status):
                # No shell would continue it.
                os.kill(child, signal.SIGCONT)
            else:
                ended = os.waitstatus_to_exitcode(status)
                code = ended if ended >= 0 else 128 - ended
    return code
