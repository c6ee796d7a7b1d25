"""What ``leakcheck leaks`` and ``stress`` do: run the campaign with progress on stderr, print and save its result."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from leakcheck.campaigns.leaks import LeaksOptions, leaks
from leakcheck.campaigns.render import print_campaign
from leakcheck.campaigns.result import Campaign, Record
from leakcheck.campaigns.stress import StressOptions, stress
from leakcheck.commands import EXIT_OF, INTERRUPTED, LEAKED
from leakcheck.deliver import deliver, output_to, say
from leakcheck.errors import StoppedError
from leakcheck.render import printable
from leakcheck.subprocesses import Interrupts, in_background
from leakcheck.targets import Target
from leakcheck.trials.session import Stop
from leakcheck.trials.trial import Trial
from leakcheck.warden import shutdown

__all__ = ["run_leaks", "run_stress"]

_PATIENCE = 50
"""Seconds more than a command's that the trials which run have to end in once we were told to."""


def run_leaks(target: Target, options: LeaksOptions, output: Path | None, *, as_json: bool) -> int:
    """Run the campaign; the exit code is the verdict's, or 130 when it was interrupted."""
    options.check()
    progress = _Progress(target.name, options.iterations)

    def run(stop: Stop) -> Campaign:
        return leaks(target, options, progress=_of_trial(progress), finishing=progress.finishing, stop=stop)

    return _run(run, progress, output, as_json=as_json)


def run_stress(target: Target, options: StressOptions, output: Path | None, *, as_json: bool) -> int:
    """Run the campaign; the exit code is 1 where a criterion failed, else the verdict's, or 130 when interrupted."""
    options.check()
    progress = _Progress(target.name, options.wanted, options.duration)

    def run(stop: Stop) -> Campaign:
        return stress(
            target,
            options,
            progress=_of_record(progress),
            finishing=progress.finishing,
            tell=progress.say,
            stop=stop,
        )

    return _run(run, progress, output, as_json=as_json)


def _of_trial(progress: "_Progress") -> Callable[[Trial, int], None]:
    return lambda trial, made: progress.tell(trial.outcome, made)


def _of_record(progress: "_Progress") -> Callable[[Record, int], None]:
    return lambda record, made: progress.tell(record.status if record.right else "false-status", made)


def _run(run: Callable[[Stop], Campaign], progress: "_Progress", output: Path | None, *, as_json: bool) -> int:
    with output_to(output) as place, Interrupts() as interrupts:
        try:
            result = in_background(lambda: run(interrupts.seen), interrupts, _PATIENCE)
        except StoppedError as stopped:
            progress.end()
            shutdown()
            say(f"{stopped}, so there is no result")
            return INTERRUPTED
        finally:
            progress.end()
        shutdown()
        code = LEAKED if result.campaign == "stress" and result.failed else EXIT_OF[result.verdict]
        show = None if as_json else lambda: print_campaign(result, Console(stderr=True))
        code = deliver(code, result.to_json(), place, show)
        return INTERRUPTED if interrupts.seen() else code


class _Progress:
    """One line that is written over on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, name: str, wanted: int | None, duration: float | None = None) -> None:
        self._name, self._wanted, self._duration = name, wanted, duration
        self._outcomes: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        if self._terminal:
            self._write("checking the target …")

    def tell(self, outcome: str, made: int) -> None:
        """Count one more, the `made`-th."""
        self._outcomes[outcome] += 1
        now = time.monotonic()
        if made == 1:
            self._first = now
        if now - self._told < (0.1 if self._terminal else 10) and made != self._wanted:
            return
        self._told = now
        rate = (made - 1) / (now - self._first) if made > 1 and now > self._first else 0
        ends = [(self._wanted - made) / rate] if self._wanted and rate else []
        ends += [max(0.0, self._first + self._duration - now)] if self._duration else []
        left = f", {_duration(min(ends))} left" if ends else ""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self._outcomes.items())
        self._write(f"{made}{f'/{self._wanted}' if self._wanted else ''}{left}: {counts}")

    def finishing(self, running: int) -> None:
        """Tell that `running` more are waited for."""
        self._write(f"interrupted: finishing the {running} that run; again to leave at once")

    def say(self, text: str) -> None:
        """Tell what is being done."""
        self._write(text)

    def _write(self, text: str) -> None:
        begin, end = ("\r\x1b[2K", "") if self._terminal else ("", "\n")
        try:
            print(f"{begin}leakcheck: {printable(f'{self._name}: {text}')}", end=end, file=sys.stderr, flush=True)
        except BrokenPipeError:
            # Somebody has read enough.
            raise
        except OSError:
            # Closed, or full: the result goes elsewhere, or its printing fails and says so.
            return

    def end(self) -> None:
        if self._terminal:
            with contextlib.suppress(OSError):
                print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
