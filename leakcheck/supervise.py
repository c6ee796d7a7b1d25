"""Run the guarded command: its own stdio and signals untouched, its exit waited for, Ctrl-C understood."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

__all__ = ["GivenUp", "Interrupts", "TargetError", "in_background", "run", "why_not_run"]

_T = TypeVar("_T")


class TargetError(Exception):
    """The command could not be run at all; exit code 4."""


class GivenUp(BaseException):
    """A second SIGINT: leave at once. No `Exception`, so that nothing takes it for a failure of the check."""


class Interrupts:
    """What the user or a supervisor of ours wants to end, while it is entered.

    A first SIGINT is only noted where the command is in our process group and got it from the terminal too. SIGTERM and
    SIGHUP reach us alone, so they are passed on, and so is SIGINT to a command in an arena. A signal that was ignored
    when we were started (nohup, ``&`` in sh) stays ignored.
    """

    def __init__(self) -> None:
        self._seen = False
        self._asked = False
        self._waiting: list[int] = []
        self._pidfd: int | None = None
        self._pass_int = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGINT, self._on_int),
            (signal.SIGTERM, self._on_end),
            (signal.SIGHUP, self._on_end),
        ):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, handler)
        # An inherited "ignore" would make the kernel reap the command, and its exit status would be lost (wait(2),
        # NOTES).
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def seen(self) -> bool:
        """Whether somebody wants to end."""
        return self._seen

    @contextlib.contextmanager
    def reaching(self, pidfd: int, *, pass_int: bool = False) -> Generator[None, None, None]:
        """Pass signals on to the process of `pidfd` meanwhile, also those that came before it was there."""
        self._pidfd = pidfd
        self._pass_int = pass_int
        try:
            if pass_int and self._asked:
                self._forward(signal.SIGINT)
            while self._waiting:
                self._forward(self._waiting.pop(0))
            yield
        finally:
            self._pidfd = None

    def _on_int(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise GivenUp
        self._asked = self._seen = True
        if self._pass_int:
            self._forward(number)

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        self._seen = True
        if self._pidfd is None:
            self._waiting.append(number)
        else:
            self._forward(number)

    def _forward(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    interrupts: Interrupts,
    *,
    stdout: int | None = None,
    stdin: int | None = None,
) -> int:
    """Run `argv` with our stdio, or the given descriptors, in our process group until it ends.

    Returns its exit code, or -N when signal N killed it. Descriptors that we inherited are inherited in turn, as by
    any wrapper.

    Raises:
        TargetError: there is no such command or it cannot be executed.
        GivenUp: a second SIGINT came.
    """
    try:
        process = subprocess.Popen(argv, env=env, close_fds=False, stdin=stdin, stdout=stdout)
    except OSError as error:
        raise TargetError(f"run {argv[0]}: {why_not_run(argv[0], error)}") from error
    pidfd = os.pidfd_open(process.pid)
    try:
        with interrupts.reaching(pidfd):
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll()
            return process.wait()
    finally:
        os.close(pidfd)


def in_background(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, run in another thread: signal handlers need the main thread to be in Python."""
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def worker() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again below, in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=worker, name="leakcheck", daemon=True)
    thread.start()
    # Now and then back in Python: the kernel may give the signal to another thread, and that does not wake this one.
    while thread.is_alive():
        thread.join(0.2)
    if failure:
        raise failure[0]
    return outcome[0]


def why_not_run(program: str, error: OSError) -> str:
    """Return why starting `program` gave `error`, in words."""
    path = Path(program)
    if error.errno == errno.ENOENT:
        if "/" not in program:
            return "no such command on PATH"
        return "the interpreter in its first line does not exist" if path.exists() else "no such file"
    if error.errno == errno.EACCES:
        return "is a directory" if path.is_dir() else "not executable; check its mode and its file system's noexec"
    if error.errno == errno.ENOEXEC:
        return "not a program of this machine, and no script with a #! line"
    return error.strerror or str(error)
