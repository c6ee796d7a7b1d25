"""Run the guarded command: pass stdio through, forward signals, handle Ctrl-C, wait for its exit."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

from leakcheck.errors import GivenUp, TargetError
from leakcheck.group import Group, suspend

_T = TypeVar("_T")

_GRACE = 5
"""Seconds that a command has to end after we were asked to end; the same time again for what follows."""
_ASK = 1
"""Seconds between two questions whether a command is stuck."""


class Interrupts:
    """Handles signals of the user or a supervisor while it is entered.

    The command has its own process group, so signals that reach us are forwarded to it: SIGINT, SIGTERM, SIGHUP,
    SIGQUIT, and the terminal's SIGTSTP. A signal that was ignored when we started (nohup, ``&`` in sh) stays ignored.
    A second SIGINT quits at once. The other signals always end us: a command that has not ended some seconds later is
    killed.
    """

    def __init__(self) -> None:
        self._seen = False
        self._asked = False
        self._due: float | None = None
        self._waiting: list[int] = []
        self._send: Callable[[int], None] | None = None
        self._pass_stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # The kernel may deliver a signal to a thread of the native core, which does not wake a wait of this thread:
        # the signal number written to this descriptor does.
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), self._on_end)
        for number, handler in {**handlers, signal.SIGINT: self._on_int, signal.SIGTSTP: self._on_stop}.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, handler)
        # An inherited "ignore" would make the kernel reap the command, and its exit status would be lost (wait(2),
        # NOTES). With a handler, a command that stops wakes us.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wake_before)
        os.close(self._wake)
        os.close(self._woken)

    def seen(self) -> bool:
        """Whether an end was requested."""
        return self._seen

    def note(self) -> None:
        """Record that the command itself was asked to end, through the terminal that it had."""
        self._seen = True

    def overdue(self, seconds: float) -> bool:
        """Whether we were asked to end, other than by a first SIGINT, at least so many seconds ago."""
        return self._due is not None and time.monotonic() >= self._due + seconds

    @contextlib.contextmanager
    def reaching(self, send: Callable[[int], None], *, pass_stop: bool = False) -> Generator[None, None, None]:
        """Forward signals through `send` while entered, also those received before; SIGTSTP only with `pass_stop`."""
        self._send, self._pass_stop = send, pass_stop
        try:
            while self._waiting:
                self._forward(self._waiting.pop(0))
            yield
        finally:
            self._send = None

    def wait(
        self,
        pidfd: int,
        stopped: Callable[[], None] = lambda: None,
        *,
        after_int: bool = False,
        stuck: Callable[[], bool] | None = None,
    ) -> bool:
        """Wait until the process of `pidfd` has ended; False if even SIGKILL, seconds after a signal, does not end it.

        `stopped` is called when a child may have been stopped; `after_int` lets a first SIGINT count as well. `stuck`,
        asked each second, tells whether the process can end no more: if it says so twice in a row, the result is False.
        A second SIGINT raises `GivenUp`.
        """
        ready = select.poll()
        ready.register(pidfd, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        killed = False
        signs, asked = 0, time.monotonic()
        while True:
            if after_int and self._asked:
                self._due = self._due or time.monotonic()
            pause = None if stuck is None else _ASK * 1000
            found = dict(ready.poll(pause if self._due is None else 100))
            if pidfd in found:
                return True
            if stuck is not None and time.monotonic() >= asked + _ASK:
                signs, asked = signs + 1 if stuck() else 0, time.monotonic()
                if signs > 1:
                    return False
            if self._wake in found:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                stopped()
            if self.overdue(_GRACE) and not killed:
                killed = True
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if self.overdue(2 * _GRACE):
                return False

    def _on_int(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise GivenUp
        self._asked = self._seen = True
        self._forward(number)

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        self._seen = True
        self._due = self._due or time.monotonic()
        self._forward(number)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self._send is None or not self._pass_stop:
            suspend(number, os.getpid())
        else:
            self._forward(number)

    def _forward(self, number: int) -> None:
        if self._send is None:
            self._waiting.append(number)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._send(number)


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    interrupts: Interrupts,
    *,
    stdout: int | None = None,
    stdin: int | None = None,
) -> int:
    """Run `argv` with our stdio, or the given descriptors, in its own process group; return its exit code.

    The code is -N if signal N killed it. It inherits the descriptors that we inherited, as with any wrapper.

    Raises:
        TargetError: the command does not exist or cannot be executed.
        GivenUp: a second SIGINT came.
    """
    with Group() as group:
        try:
            process = subprocess.Popen(
                argv, env=env, close_fds=False, stdin=stdin, stdout=stdout, process_group=group.id
            )
        except OSError as error:
            raise TargetError(f"run {argv[0]}: {why_not_run(argv[0], error)}") from error
        pidfd = os.pidfd_open(process.pid)
        try:
            group.joined(process.pid)
            with interrupts.reaching(group.send, pass_stop=True):
                if not interrupts.wait(pidfd, lambda: group.stopped(process.pid)):
                    raise GivenUp
                code = process.wait()
        finally:
            os.close(pidfd)
        if code == -signal.SIGINT and group.had_terminal:
            interrupts.note()
        return code


def in_background(work: Callable[[], _T], interrupts: Interrupts, patience: float = 0, *, at_once: bool = False) -> _T:
    """Run `work` in another thread and return its result: signal handlers need the main thread to be in Python.

    Raises:
        MemoryError: the thread has no memory to begin.
        GivenUp: a second SIGINT came, or we were asked to end and `work` still runs `patience` seconds after the time
            that a command has to end, or at any time if it is to end `at_once`.
    """
    outcome: Future[_T] = Future()

    class Life:
        """Ends with the thread, even with one that has no memory to begin."""

    def worker(_: Life) -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - `result` raises it in the caller's thread
            outcome.set_exception(error)

    life = Life()
    is_alive = weakref.ref(life)
    # Thread.start() would wait for ever for a thread that cannot begin.
    start_new_thread(worker, (life,))
    del life
    # Return to Python regularly: the kernel may deliver the signal to another thread, which does not wake this one.
    while wait([outcome], timeout=0.2).not_done:
        if at_once and interrupts.seen():
            raise GivenUp("interrupted before the command started: no verdict")
        if interrupts.overdue(2 * _GRACE + patience):
            raise GivenUp
        if is_alive() is None and not outcome.done():
            raise MemoryError("a thread could not begin")
    return outcome.result()


def why_not_run(program: str, error: OSError) -> str:
    """Return, in words, why starting `program` failed with `error`."""
    path = Path(program)
    if error.errno == errno.ENOENT:
        if "/" not in program:
            return "no such command on PATH"
        return "the interpreter in its first line does not exist" if path.exists() else "no such file"
    if error.errno == errno.EACCES:
        return "is a directory" if path.is_dir() else "not executable; check its mode and its file system's noexec"
    if error.errno == errno.ENOEXEC:
        return "neither a program for this machine nor a script with a #! line"
    return error.strerror or str(error)
