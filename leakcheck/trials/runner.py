"""Runs commands in a host: timed, traced if asked for, and each with a time limit."""

import abc
import contextlib
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from injectors import Checked
from injectors.timed import ended, kill
from leakcheck.arena import Trace
from leakcheck.errors import LateError, StoppedError
from leakcheck.trials.host import Host, Running
from leakcheck.trials.tracing import Request, Tracing

Stop = Callable[[], bool]
"""Returns whether an end was requested."""

GRACE = 30.0
"""Seconds beyond a submission's wall limit, for start and teardown of the slowest target on a machine under load."""
# Interval, in seconds, at which `Stop` is called while something runs.
_ASK = 0.2


def never() -> bool:
    """Return false: no end was requested."""
    return False


class Runner(abc.ABC):
    """Runs commands of `name` in `host`, and times what is done.

    `stop` ends the running command with `StoppedError`; `late` is called with a command that runs too long, before it
    is killed. What is traced of trial `number` has one CPU.
    """

    def __init__(
        self, name: str, host: Host, number: int, *, stop: Stop, late: Callable[[Running], None] | None
    ) -> None:
        self.name = name
        self.host = host
        self.timing_ms: dict[str, float] = {}
        self.late = False
        """Whether a command was ended for running too long."""
        self.openers: set[int] = set()
        """Who opened the program of the first contender while its box was prepared."""
        self.started: Callable[[Running], None] | None = None
        """Called with each started command."""
        self._number = number
        self._tracing: Tracing | None = None
        self.stop = stop
        self._late = late

    @abc.abstractmethod
    def environment(self) -> tuple[dict[str, str], str]:
        """Return the environment of the commands, and the directory in which they start."""

    def filled(self, path: str) -> str:
        """Return a path, as the adapter names it, as that of this box."""
        return path

    def spelled(self, argv: Sequence[str]) -> Sequence[str]:
        """Return a command with paths that several users share spelled as the first of them does."""
        return argv

    @contextlib.contextmanager
    def timed(self, step: str) -> Generator[None, None, None]:
        """Add the time until its end to the time of `step`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.timing_ms[step] = self.timing_ms.get(step, 0) + (time.monotonic() - began) * 1000

    @contextlib.contextmanager
    def tracing(self, request: Request) -> Generator[Tracing, None, None]:
        """Trace the commands for which `request` returns how, each stage once, until the end."""
        before, self._tracing = self._tracing, Tracing(request, self._number)
        try:
            yield self._tracing
        finally:
            self._tracing.close()
            self._tracing = before

    def traced(self, injector: Checked) -> contextlib.AbstractContextManager[Tracing | None]:
        """Trace the commands that `injector` asks for until the end; it may ask for none."""
        return contextlib.nullcontext() if injector.trace is None else self.tracing(injector.trace)

    def fired(self, stage: str | None = None) -> str:
        """Return the phase in which a traced fault happened, in any stage or in `stage`; empty if it did not."""
        return self._tracing.fired(stage) if self._tracing is not None else ""

    def held(self, instant: str) -> int:
        """Return the process that waits, or has waited, at an `instant` of a trace; 0 if there is none."""
        return self._tracing.held(instant) if self._tracing is not None else 0

    def release(self) -> None:
        """Let the traced command go on that waits."""
        if self._tracing is not None:
            self._tracing.release()

    def reports(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the tracer reported of all stages so far."""
        return self._tracing.all_reports() if self._tracing is not None else {}

    def hits(self, stage: str) -> int:
        """Return how many traced faults of `stage` happened, a kill among them."""
        return self._tracing.hits(stage) if self._tracing is not None else 0

    def start(
        self,
        argv: Sequence[str],
        output: int,
        env: Mapping[str, str] = {},
        *,
        stage: str = "",
        number: int = 0,
        payload: Sequence[str] = (),
    ) -> Running:
        """Start a command, with `env` added to its environment; it is traced if its stage is to be."""
        environment, cwd = self.environment()
        argv = self.spelled(argv)
        trace = self._tracing.of(stage, number, payload) if stage and self._tracing is not None else None
        if trace is not None and "files" in trace.request:
            files = [self.filled(path) for path in trace.request["files"]]
            trace = Trace({**trace.request, "files": files}, trace.log)
        process = self.host.start(argv, environment | dict(env), output, cwd, trace)
        if self.started is not None:
            self.started(process)
        return process

    def wait(self, process: Running, limit: float, name: str) -> int:
        """Return the exit code of `process`; after `limit` seconds plus grace, kill it and raise `LateError`."""
        until = time.monotonic() + limit + GRACE
        try:
            while not ended(process, int(_ASK * 1000)):
                late = time.monotonic() > until
                if late or self.stop():
                    if late and self._late is not None:
                        self._late(process)
                    kill(process, lambda: self.host.tree(process), "tree")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE)
                    if late:
                        self.late = True
                        by = f" by its wall limit of {limit:g} s" if limit else ""
                        raise LateError(
                            f"{Path(name).name} did not end{by}; ended by leakcheck after {limit + GRACE:.0f} s"
                        )
                    raise StoppedError(f"{self.name}: interrupted before the first trial")
            return process.wait()
        finally:
            process.close()
