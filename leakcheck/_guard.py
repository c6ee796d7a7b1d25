"""Guards: a baseline before some code, a verdict after it."""

import contextlib
import functools
import gc
import inspect
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast

from leakcheck import _native
from leakcheck.allow import Allow, to_toml
from leakcheck.errors import CoverageError, LeakcheckWarning, LeakError, UsageError
from leakcheck.render import summary
from leakcheck.report import Report

__all__ = [
    "Guard",
    "InArena",
    "Kinds",
    "OnUnknown",
    "Run",
    "enforce",
    "existing_roots",
    "guard",
    "kinds_text",
    "milliseconds",
    "view_of",
]

Kinds: TypeAlias = str | Iterable[str] | None
"""Kinds of resource: ``"process,fd"``, ``["process", "fd"]``, or None for every kind that the scope can delimit."""
OnUnknown: TypeAlias = Literal["raise", "warn", "ignore"]


class _Viewed(Protocol):
    @property
    def view(self) -> _native.ArenaView: ...


InArena: TypeAlias = _native.ArenaView | _Viewed
"""An arena, or what one is seen through."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def kinds_text(kinds: Kinds) -> str | None:
    """Return `kinds` as the native core takes it."""
    return kinds if kinds is None or isinstance(kinds, str) else ",".join(kinds)


def view_of(arena: InArena | None) -> _native.ArenaView | None:
    """Return what `arena` is seen through."""
    return arena if arena is None or isinstance(arena, _native.ArenaView) else arena.view


def milliseconds(seconds: float) -> int:
    """Return a settle time of `seconds` in ms; raise `UsageError` unless it is from 0 to 3600."""
    if not 0 <= seconds <= 3600:
        raise UsageError(f"settle time {seconds}: give seconds from 0 to 3600")
    return round(seconds * 1000)


def existing_roots(roots: Sequence[str] | None, option: str = "roots") -> Sequence[str] | None:
    """Return `roots` if each is a directory; the message of the `UsageError` otherwise names `option`.

    A default root may be missing, but where a declared one is, nothing would be looked at and all would be clean.
    """
    for root in roots or ():
        try:
            place = _native.path_class(root)
        except ValueError:
            continue  # A NUL in it: the observation says what it could not see.
        if place == "nothing":
            raise UsageError(f"{option} {root}: no such directory")
        if place == "other":
            raise UsageError(f"{option} {root}: not a directory")
    return roots


def enforce(report: Report, on_unknown: OnUnknown = "raise") -> Report:
    """Return `report` if it is clean; raise `LeakError` if it leaked, and what `on_unknown` says if it is unknown."""
    if report.verdict == "leaked":
        raise LeakError(summary(report), report)
    if report.verdict == "unknown":
        if on_unknown == "raise":
            raise CoverageError(summary(report), report)
        if on_unknown == "warn":
            warnings.warn(summary(report), LeakcheckWarning, stacklevel=3)
    return report


class Run:
    """One guarded stretch of this very process: the baseline is taken at construction.

    What runs meanwhile inherits the run token in the environment, so that it is known as the run's own afterwards.
    """

    def __init__(
        self,
        *,
        scope: str = "host",
        kinds: str | None = None,
        roots: Sequence[str] | None = None,
        lock_files: Sequence[str] = (),
        allow: str | None = None,
        settle_ms: int = 500,
        attributed_only: bool = False,
        arena: InArena | None = None,
    ) -> None:
        # Garbage of earlier code that a collection would close in mid-run is not the run's.
        gc.collect()
        self._native = _native.Guard(
            scope=scope,
            kinds=kinds,
            roots=existing_roots(roots),
            lock_files=lock_files,
            allow=allow,
            settle_ms=settle_ms,
            include_self=True,
            # Any other process of the machine may make a key.
            attributed_only=attributed_only or arena is not None,
            arena=view_of(arena),
        )
        self._token, value = self._native.token
        self._before = os.environ.get(self._token)
        os.environ[self._token] = value

    def end(self) -> Report:
        """Settle and judge; blocks, without the GIL, until the residue is gone or the settle time is over."""
        self._restore()
        gc.collect()
        return Report.from_json(self._native.end())

    async def end_async(self) -> Report:
        """Like `end`, but an asyncio loop keeps running: much of what asyncio closes it closes in a later iteration."""
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:  # trio, or another loop
            return self.end()
        self._restore()
        await asyncio.sleep(0)
        gc.collect()
        return Report.from_json(await asyncio.to_thread(self._native.end))

    def allow(self, text: str) -> None:
        """Add the rules of an allow file's `text` before the end."""
        self._native.allow(text)

    def abandon(self) -> None:
        """Give up without a verdict."""
        self._restore()
        self._native.abandon()

    def _restore(self) -> None:
        if self._before is None:
            os.environ.pop(self._token, None)
        else:
            os.environ[self._token] = self._before


class Guard:
    """What `guard` returns: a context manager, plain or async, and a decorator; `report` is there after the run."""

    def __init__(self, options: dict[str, Any], on_unknown: OnUnknown) -> None:
        self._options = options
        self._on_unknown = on_unknown
        self._run: Run | None = None
        self.report: Report | None = None

    def __enter__(self) -> Self:
        if self._run is not None:
            raise RuntimeError("enter a guard that is entered already: make one guard a run")
        self._run = Run(**self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (run := self._leave(error)) is not None:
            with _never_hiding(error):
                self.report = run.end()
            self._judge(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (run := self._leave(error)) is not None:
            with _never_hiding(error):
                self.report = await run.end_async()
            self._judge(error)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Guard each call of `function`: a function, a coroutine function or a generator function."""
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"guard {function.__qualname__}: asynchronous generators are not supported; guard what consumes it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                async with self._again():
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", call_async)
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generate(*args: _P.args, **kwargs: _P.kwargs) -> Generator[Any, Any, Any]:
                with self._again():
                    return (yield from function(*args, **kwargs))

            return cast("Callable[_P, _R]", generate)

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self._again():
                return function(*args, **kwargs)

        return call

    def _again(self) -> "Guard":
        return Guard(self._options, self._on_unknown)

    def _leave(self, error: BaseException | None) -> Run | None:
        """Return the run that is to be ended; None after Ctrl-C, for which nobody waits."""
        if self._run is None:
            raise RuntimeError("leave a guard that was not entered")
        run, self._run = self._run, None
        if isinstance(error, KeyboardInterrupt):
            run.abandon()
            return None
        return run

    def _judge(self, error: BaseException | None) -> None:
        if self.report is None:
            return
        if error is None:
            enforce(self.report, self._on_unknown)
        elif self.report.verdict == "leaked" or (self.report.verdict == "unknown" and self._on_unknown != "ignore"):
            error.add_note(summary(self.report))


def guard(
    *,
    scope: str = "host",
    kinds: Kinds = None,
    roots: Sequence[str | os.PathLike[str]] | None = None,
    lock_files: Sequence[str | os.PathLike[str]] = (),
    allow: Allow = None,
    settle: float = 0.5,
    on_unknown: OnUnknown = "raise",
    attributed_only: bool = False,
    arena: InArena | None = None,
) -> Guard:
    """Check that some code of this process leaves nothing behind.

    Use it as ``with guard(): …``, as ``async with guard(): …`` or as the decorator ``@guard()``.

    The baseline is taken on entry. On exit garbage is collected, then the residue may settle, then it is judged. This
    process's own descriptors count. The decorator takes functions, coroutine functions and generator functions and
    guards every call; ``async with guard():`` lets the asyncio loop run on while settling. Guards may be nested. They
    look at the whole process, so guards in several threads at once see each other's resources: run one at a time.

    An exception of the guarded code is never hidden: it propagates, and what leaked is added to it as a note (PEP 678).

    Args:
        scope: ``"host"``, ``"cgroup:PATH"`` or ``"tree:PID"``.
        kinds: what to look at; None is every kind that the scope can delimit.
        roots: directories whose files count; None is `leakcheck.DEFAULT_ROOTS`.
        lock_files: paths at which lock files are expected; each is checked for being held, free, stale or corrupt.
        allow: path of an allow file, or `AllowRule`s.
        settle: seconds for asynchronous teardown, from 0 to 3600; what goes away in them is `Report.transient`.
        on_unknown: what to do when not everything could be looked at: ``"raise"`` `CoverageError`, ``"warn"`` with
            `LeakcheckWarning`, or ``"ignore"``; the report says ``unknown`` in any case, never ``clean``.
        attributed_only: report residue only if descent, cgroup, namespace, run token or uid ties it to this run. For
            test suites with parallel neighbours; the rest is in `Report.unattributed`.
        arena: the disposable host in which the code runs something; all of it is looked at instead of `scope` and
            `roots`, everything new in it is the run's, and this process's descriptors do not count. Of what no
            namespace isolates, what somebody else made is noise, and what nobody saw made (`Report.unattributed`) makes
            the verdict unknown.

    Raises:
        UsageError: at once or on entry, for an unknown kind or scope, a missing root, a bad allow rule or a settle time
            out of range.
        LeakError, CoverageError: on exit, as the verdict says.
        NativeError: the machine refused something that the observation cannot do without.
    """
    options: dict[str, Any] = {
        "scope": scope,
        "kinds": kinds_text(kinds),
        "roots": None if roots is None else [os.fspath(root) for root in roots],
        "lock_files": [os.fspath(path) for path in lock_files],
        "allow": to_toml(allow),
        "settle_ms": milliseconds(settle),
        "attributed_only": attributed_only,
        "arena": arena,
    }
    return Guard(options, on_unknown)


@contextlib.contextmanager
def _never_hiding(error: BaseException | None) -> Generator[None, None, None]:
    """Let a failure of the check itself propagate only if the guarded code raised nothing; else note it there."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        error.add_note(f"leakcheck: unknown, the check itself failed: {failure}")
