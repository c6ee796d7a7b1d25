"""What ``leakcheck leaks`` does: run the campaign with progress on stderr, print and save its result."""

import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from leakcheck import arena
from leakcheck.campaigns.leaks import LeaksOptions, leaks
from leakcheck.campaigns.render import print_campaign
from leakcheck.campaigns.stages import StoppedError
from leakcheck.campaigns.trial import Trial
from leakcheck.save import check_writable, save
from leakcheck.supervise import Interrupts, in_background
from leakcheck.targets import Target

__all__ = ["run_leaks"]

_INTERRUPTED = 130
_EXIT = {"clean": 0, "leaked": 1, "unknown": 3}


def run_leaks(target: Target, options: LeaksOptions, output: Path | None, *, as_json: bool) -> int:
    """Run the campaign; the exit code is the verdict's, or 130 when it was interrupted."""
    options.check()
    if output is not None:
        check_writable(output)
    progress = _Progress(target.name, options.iterations)
    with Interrupts() as interrupts:
        try:
            result = in_background(
                lambda: leaks(
                    target, options, progress=progress.tell, finishing=progress.finishing, stop=interrupts.seen
                )
            )
        except StoppedError as stopped:
            progress.end()
            arena.shutdown()
            print(f"leakcheck: {stopped}, so there is no result", file=sys.stderr, flush=True)
            return _INTERRUPTED
        finally:
            progress.end()
        arena.shutdown()
        if not as_json:
            print_campaign(result, Console(stderr=True))
        if output is not None:
            save(output, result.to_json())
        if as_json:
            print(result.to_json(), flush=True)
        return _INTERRUPTED if interrupts.seen() else _EXIT[result.verdict]


class _Progress:
    """One line that is written over on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, name: str, wanted: int) -> None:
        self._name, self._wanted = name, wanted
        self._outcomes: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        if self._terminal:
            self._write("checking the target …")

    def tell(self, trial: Trial, made: int) -> None:
        self._outcomes[trial.outcome] += 1
        now = time.monotonic()
        if made == 1:
            self._first = now
        if now - self._told < (0.1 if self._terminal else 10) and made < self._wanted:
            return
        self._told = now
        rate = (made - 1) / (now - self._first) if made > 1 and now > self._first else 0
        left = f", {_duration((self._wanted - made) / rate)} left" if rate else ""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self._outcomes.items())
        self._write(f"{made}/{self._wanted}{left}: {counts}")

    def finishing(self, running: int) -> None:
        self._write(f"interrupted: finishing {running} {'trial' if running == 1 else 'trials'}; again to leave at once")

    def _write(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[2Kleakcheck: {self._name}: {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"leakcheck: {self._name}: {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
