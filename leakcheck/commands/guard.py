"""``leakcheck guard``: run a command between a baseline and a verdict."""

import contextlib
import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from rich.console import Console

from leakcheck import _native
from leakcheck.allow import read_allow_file
from leakcheck.arena import Arena, prepare_observation, run_in_arena
from leakcheck.commands import EXIT_OF, INTERRUPTED, UNKNOWN
from leakcheck.deliver import deliver, notify, output_to, show_progress
from leakcheck.errors import ArenaError, GivenUp, TargetError
from leakcheck.render import lines, print_lines
from leakcheck.report import Report
from leakcheck.subprocesses import Interrupts, in_background, run

# The guarded action: takes the environment, yields the command line and its exit code, and cleans up on exit.
Action: TypeAlias = Callable[[Mapping[str, str], Interrupts], AbstractContextManager[tuple[list[str], int | None]]]


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """The options of ``leakcheck guard``; `observe` are those of the native guard, `settle_ms` is in milliseconds.

    `rules` are the allow rules if no file is given by `allow`.
    """

    observe: Mapping[str, Any]
    allow: Path | None = None
    rules: str = ""
    settle_ms: int = 500
    json: bool = False
    output: Path | None = None
    reports: Sequence[Path] = ()
    recover: str | None = None
    pass_exit: bool = False
    arena: Arena | None = None
    keep: bool = False

    @property
    def run(self) -> Callable[..., int]:
        """The function that runs a command where they say: `leakcheck.subprocesses.run` or `run_in_arena`."""
        return run if self.arena is None else functools.partial(run_in_arena, self.arena)


def guard(argv: Sequence[str], options: GuardOptions) -> int:
    """Run `argv` between a baseline and a verdict."""

    @contextlib.contextmanager
    def command(env: Mapping[str, str], interrupts: Interrupts) -> Generator[tuple[list[str], int | None], None, None]:
        # An argument need not be valid UTF-8 (execve(2)), but JSON must be.
        shown = [os.fsencode(argument).decode("utf-8", "backslashreplace") for argument in argv]
        # Only JSON goes to stdout, so that it can be piped into a program.
        yield shown, options.run(argv, env, interrupts, stdout=sys.stderr.fileno() if options.json else None)

    return guarded(command, options)


def guarded(action: Action, options: GuardOptions) -> int:
    """Do `action` between a baseline and a verdict; return the exit code."""
    allow = options.rules if options.allow is None else read_allow_file(options.allow)
    left: list[str] = []
    with contextlib.ExitStack() as stack:
        delivery = _Delivery(options, stack)
        interrupts = stack.enter_context(Interrupts())
        place = stack.enter_context(_arena(options, interrupts, left))
        begin = functools.partial(
            _native.Guard, **options.observe, **place, allow=allow or None, settle_ms=options.settle_ms
        )
        with _progress("taking the baseline"):
            watched = in_background(begin, interrupts, at_once=True)
        try:
            if interrupts.seen():
                return INTERRUPTED
            name, value = watched.token
            env = {**os.environ, name: value}
            with action(env, interrupts) as (argv, exit_code):
                with _progress("settling"):
                    text = in_background(lambda: watched.end(argv, exit_code), interrupts)
                if options.recover is not None:
                    try:
                        text = _recovered(watched, options, env, interrupts)
                    except TargetError:
                        # The residue of the run itself is already known.
                        delivery.deliver(text, exit_code)
                        raise
                code = delivery.deliver(text, exit_code)
        finally:
            # After a second Ctrl-C, a thread may still be settling with the guard, and abandon() would wait for it.
            if not isinstance(sys.exception(), GivenUp):
                watched.abandon()
    if interrupts.seen():
        return INTERRUPTED
    # A process that does not end is residue, even if no observation attributed it to the run.
    return UNKNOWN if left and Report.from_json(text).verdict == "clean" else code


@contextlib.contextmanager
def _arena(options: GuardOptions, interrupts: Interrupts, left: list[str]) -> Generator[dict[str, Any], None, None]:
    """Bring the arena up, if the command runs in one; yield what the native guard needs to observe it.

    If the arena cannot be removed at the end, the error is logged and appended to `left`: the verdict is out by then.
    """
    if (arena := options.arena) is None:
        yield {}
        return
    with _progress("bringing up an arena"):
        ready = prepare_observation()
        try:
            arena.up()
        finally:
            ready()
    try:
        # Any process of the machine may create a key, so those that nothing ties to the arena are listed separately.
        # Its bind mounts may have any number of files.
        view = in_background(lambda: arena.view, interrupts, at_once=True)
        yield {"arena": view, "attributed_only": True}
    finally:
        if options.keep:
            notify(f"the arena is still up; {arena.how_to_enter}")
        try:
            arena.down()
        except ArenaError as error:
            left.append(str(error))
            notify(f"remove the arena: {error}; the next start of leakcheck tries again")


def _recovered(watched: _native.Guard, options: GuardOptions, env: Mapping[str, str], interrupts: Interrupts) -> str:
    recover = options.recover or ""
    # Its output is not the guarded command's, so it goes to stderr like ours.
    stderr = sys.stderr.fileno()
    code = options.run(["/bin/sh", "-c", recover], env, interrupts, stdin=subprocess.DEVNULL, stdout=stderr)
    if code != 0:
        ended = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
        notify(f"recover command {shlex.quote(recover)} {ended}")
    with _progress("settling after the recover command"):
        report = msgspec.json.decode(in_background(watched.recovered, interrupts))
    report["recover"] = {"argv": ["/bin/sh", "-c", recover], "exit": code}
    return msgspec.json.encode(report).decode()


class _Delivery:
    """Where the report goes; all of it is opened before the command runs."""

    def __init__(self, options: GuardOptions, stack: contextlib.ExitStack) -> None:
        self._options = options
        self._output = stack.enter_context(output_to(options.output))
        self._report: Callable[[int, Report], int] = lambda code, _: code
        if options.reports:
            # The formats take a while to import, and a guard starts fast.
            from leakcheck.reports.files import Reports
            from leakcheck.reports.of_guard import of_guard

            files = stack.enter_context(Reports(options.reports, github=False))
            self._report = lambda code, report: files.write(code, lambda: of_guard(report))

    def deliver(self, text: str, exit_code: int | None) -> int:
        """Deliver the report `text`; return the exit code."""
        options, report = self._options, Report.from_json(text)
        code = EXIT_OF[report.verdict]
        if options.pass_exit and report.verdict == "clean" and exit_code is not None:
            code = exit_code if exit_code >= 0 else 128 - exit_code
        code = deliver(code, text, self._output, None if options.json else shows(report))
        return self._report(code, report)


@contextlib.contextmanager
def _progress(phase: str) -> Generator[None, None, None]:
    """Show `phase` on a terminal while it lasts. No animation: a SIGKILL would leave the cursor hidden."""
    show_progress(f"leakcheck: {phase} …")
    try:
        yield
    finally:
        show_progress("")


def shows(report: Report) -> Callable[[], None]:
    """Return the function that prints the report on stderr."""
    return lambda: print_lines(lines(report), Console(stderr=True))
