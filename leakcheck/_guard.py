"""Guards: a baseline before some code, a verdict after it."""

import contextlib
import functools
import gc
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeAlias, TypeVar, cast

from leakcheck import _native
from leakcheck.allow import Allow, to_toml
from leakcheck.errors import CoverageError, LeakcheckWarning, LeakError, UsageError
from leakcheck.render import summary
from leakcheck.report import Report

Kinds: TypeAlias = str | Iterable[str] | None
"""Kinds of resource: ``"process,fd"``, ``["process", "fd"]``, or None for every kind that the scope can delimit."""
OnUnknown: TypeAlias = Literal["raise", "warn", "ignore"]


class _Viewed(Protocol):
    @property
    def view(self) -> _native.ArenaView: ...


InArena: TypeAlias = _native.ArenaView | _Viewed
"""An arena, or the view through which it is observed."""

_PAUSE = 0.02
"""Seconds before garbage is collected again while residue settles, at first."""
_LONGEST_PAUSE = 0.16
"""The same, if no thread has ended meanwhile and a collection is short."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def kinds_text(kinds: Kinds) -> str | None:
    """Return `kinds` in the form that the native core takes."""
    return kinds if kinds is None or isinstance(kinds, str) else ",".join(kinds)


def view_of(arena: InArena | None) -> _native.ArenaView | None:
    """Return the view through which `arena` is observed."""
    return arena if arena is None or isinstance(arena, _native.ArenaView) else arena.view


def milliseconds(seconds: float) -> int:
    """Return the settle time `seconds` in ms; raise `UsageError` unless it is from 0 to 3600."""
    if not 0 <= seconds <= 3600:
        raise UsageError(f"settle time {seconds}: give seconds from 0 to 3600")
    return round(seconds * 1000)


def existing_roots(roots: Sequence[str] | None, option: str = "roots") -> Sequence[str] | None:
    """Return `roots` if each is a directory; the message of the `UsageError` otherwise names `option`.

    A default root may be missing. A missing declared root is an error: it would always be reported clean.
    """
    for root in roots or ():
        try:
            place = _native.path_class(root)
        except ValueError:
            continue  # A NUL in the path: the observation reports the gap.
        if place == "nothing":
            raise UsageError(f"{option} {root}: no such directory")
        if place == "other":
            raise UsageError(f"{option} {root}: not a directory")
    return roots


def enforce(report: Report, on_unknown: OnUnknown = "raise") -> Report:
    """Return `report` if it is clean; raise `LeakError` if it leaked; if it is unknown, do what `on_unknown` says."""
    if report.verdict == "leaked":
        raise LeakError(summary(report), report)
    if report.verdict == "unknown":
        if on_unknown == "raise":
            raise CoverageError(summary(report), report)
        if on_unknown == "warn":
            warnings.warn(summary(report), LeakcheckWarning, stacklevel=3)
    return report


class Run:
    """One guarded run inside this process: the baseline is taken at construction.

    The options are those of the native guard. Processes started during the run inherit the run token in the
    environment, which attributes them to the run. Without `collect_old`, the caller reports with `forget` what a
    collection of old garbage closes during the run.
    """

    def __init__(
        self,
        *,
        attributed_only: bool = False,
        arena: InArena | None = None,
        collect_old: bool = True,
        **options: Any,
    ) -> None:
        # Collect garbage of earlier code now: a collection during the run would close it as if the run had done so.
        gc.collect(2 if collect_old else 1)
        existing_roots(options.get("roots"))
        # Any other process of the machine may create a key.
        attributed_only = attributed_only or arena is not None
        view = view_of(arena)
        self._native = _native.Guard(include_self=True, attributed_only=attributed_only, arena=view, **options)
        self._token, value = self._native.token
        self._before = os.environ.get(self._token)
        os.environ[self._token] = value

    def end(self, late_rules: Callable[[], str] = str) -> Report:
        """Settle and judge; blocks, without the GIL, until the residue is gone or the settle time is over.

        `late_rules` returns the text of more allow rules. It is called if something remains, and again if something
        remains in the end: what a rule needs, such as a child's exit, may come while the residue settles.
        """
        self._restore()
        # The run's garbage is young, unless the run was long. A large program takes long to collect in full.
        gc.collect(1)
        report, rules = self._native.end_at_once(), ""
        if report is None and (rules := late_rules()):
            self._native.allow(rules)
            report = self._native.end_at_once()
        if report is None:
            gc.collect()
            report = _collecting(self._native.end)
            if Report.from_json(report).leaks and (later := late_rules()) != rules:
                self._native.allow(later)
                report = self._native.end_at_once() or _collecting(self._native.end)
        return Report.from_json(report)

    async def end_async(self) -> Report:
        """Like `end`, but an asyncio loop keeps running: asyncio closes many things in a later iteration."""
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:  # trio, or another loop
            return self.end()
        self._restore()
        await asyncio.sleep(0)
        gc.collect()
        report, pause = asyncio.ensure_future(asyncio.to_thread(self._native.end)), _PAUSE
        try:
            while not (await asyncio.wait([report], timeout=pause))[0]:
                pause = _collect(pause)
        finally:
            report.cancel()
        return Report.from_json(report.result())

    def allow(self, text: str) -> None:
        """Add the rules of an allow file's `text` before the end."""
        self._native.allow(text)

    def forget(self, descriptors: Sequence[int]) -> None:
        """Take these numbers, which were closed during the run, out of the baseline; call it before the end."""
        self._native.forget(descriptors)

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
    """What `guard` returns: a context manager, plain or async, and a decorator; `report` is set after the run."""

    def __init__(self, options: dict[str, Any], on_unknown: OnUnknown) -> None:
        self._options = options
        self._on_unknown = on_unknown
        self._run: Run | None = None
        self.report: Report | None = None

    def __enter__(self) -> Self:
        if self._run is not None:
            raise RuntimeError("guard already entered: create one guard per run")
        self._run = Run(**self._options)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if (run := self._leave(error)) is not None:
            with _never_hiding(error):
                self.report = run.end()
            self._judge(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if (run := self._leave(error)) is not None:
            with _never_hiding(error):
                self.report = await run.end_async()
            self._judge(error)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Guard each call of `function`: a function, a coroutine function or a generator function."""
        if inspect.isasyncgenfunction(function):
            why = "asynchronous generators are not supported; guard their consumer"
            raise TypeError(f"guard {function.__qualname__}: {why}")
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
        """Return the run to end; None after Ctrl-C, which must not wait."""
        if self._run is None:
            raise RuntimeError("guard exited but never entered")
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

    The baseline is taken on entry. On exit, garbage is collected, the residue may settle, and the rest is judged. This
    process's own descriptors count. The decorator takes functions, coroutine functions and generator functions and
    guards every call; ``async with guard():`` lets the asyncio loop run while settling. Guards may be nested. They
    observe the whole process, so guards in several threads see each other's resources: run one at a time.

    An exception of the guarded code is never hidden: it propagates, with the leaks added as a note (PEP 678).

    Args:
        scope: ``"host"``, ``"cgroup:PATH"`` or ``"tree:PID"``.
        kinds: kinds to observe; None means every kind that the scope can delimit.
        roots: directories to check for files; None means `leakcheck.DEFAULT_ROOTS`.
        lock_files: paths at which lock files are expected; each is checked for being held, free, stale or corrupt.
        allow: path of an allow file, or `AllowRule`s.
        settle: seconds for asynchronous teardown, from 0 to 3600; residue that goes away in this time is in
            `Report.transient`.
        on_unknown: what to do if not everything could be observed: ``"raise"`` `CoverageError`, ``"warn"`` with
            `LeakcheckWarning`, or ``"ignore"``; the report always says ``unknown``, never ``clean``.
        attributed_only: report residue only if descent, cgroup, namespace, run token or uid ties it to this run. For
            test suites that run beside others; the rest is in `Report.unattributed`.
        arena: the disposable host in which the code runs something. It is observed completely, instead of `scope` and
            `roots`; everything new in it belongs to the run, and this process's descriptors do not count. For resources
            that no namespace isolates: those made by others are noise, and those with no known maker
            (`Report.unattributed`) make the verdict unknown.

    Raises:
        UsageError: at once or on entry: unknown kind or scope, missing root, bad allow rule, or settle time out of
            range.
        LeakError, CoverageError: on exit, according to the verdict.
        NativeError: the machine refused something that the observation needs.
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


def _collecting(end: Callable[[], str]) -> str:
    """Return what `end` returns; it runs in a thread of its own, and garbage is collected here meanwhile.

    While residue settles, a thread of the run may end that was the last to hold what only a collection closes.
    """
    from concurrent.futures import ThreadPoolExecutor, wait

    with ThreadPoolExecutor(1) as pool:
        report, threads, pause, last = pool.submit(end), _threads(), _PAUSE, time.monotonic()
        while wait([report], _PAUSE).not_done:
            before, threads = threads, _threads()
            if threads != before or time.monotonic() >= last + pause:
                pause, last = _collect(min(2 * pause, _LONGEST_PAUSE)), time.monotonic()
        return report.result()


def _threads() -> set[int]:
    """Return the threads that run Python code."""
    return set(sys._current_frames())


def _collect(pause: float) -> float:
    """Collect garbage; return the pause until the next time, at least `pause`."""
    began = time.monotonic()
    gc.collect()
    # A collection in a large program must not take this process's whole time.
    return max(pause, 2 * (time.monotonic() - began))


@contextlib.contextmanager
def _never_hiding(error: BaseException | None) -> Generator[None, None, None]:
    """Let a failure of the check propagate only if the guarded code raised nothing; otherwise add it as a note."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        error.add_note(f"leakcheck: unknown, the check itself failed: {failure}")
