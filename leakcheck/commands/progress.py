"""The progress of a campaign, on stderr."""

import sys
import time
from collections import Counter
from typing import Any

from leakcheck.printable import printable
from leakcheck.trials.executor import Ui
from leakcheck.trials.record import Record


class Progress(Ui):
    """A progress line: rewritten in place on a terminal, a new line every ten seconds elsewhere."""

    def __init__(self, name: str, unit: str, limit_s: float | None) -> None:
        self._name, self._unit = name, unit
        self._wanted: int | None = None
        self._duration = limit_s
        self._outcomes: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self._reported = time.monotonic()
        # When the first one was counted, and as which: a campaign that goes on does not begin with 1.
        self._first: tuple[float, int] | None = None
        if self._terminal:
            self._write("checking the target …")

    def expect(self, trials: int | None) -> None:
        """Know how many there will be."""
        self._wanted = trials

    def made(self, trial: Any, count: int) -> None:
        """Count one more, the `count`-th."""
        right = isinstance(trial, Record) and trial.right
        self._outcomes[trial.status if right else trial.outcome] += 1
        now = time.monotonic()
        since, first = self._first = self._first or (now, count)
        if now - self._reported < (0.1 if self._terminal else 10) and count != self._wanted:
            return
        self._reported = now
        rate = (count - first) / (now - since) if count > first and now > since else 0
        ends = [(self._wanted - count) / rate] if self._wanted and rate else []
        ends += [max(0.0, since + self._duration - now)] if self._duration else []
        left = f", {in_words(min(ends))} left" if ends else ""
        counts = ", ".join(f"{number} {outcome}" for outcome, number in self._outcomes.items())
        self._write(f"{count}{f'/{self._wanted}' if self._wanted else ''}{left}: {counts}")

    def finishing(self, running: int) -> None:
        """Show that the campaign waits for `running` more."""
        self._write(f"interrupted: waiting for {running} running {self._unit}; press Ctrl-C again to quit now")

    def log(self, text: str) -> None:
        """Show what is being done."""
        self._write(text)

    def _write(self, text: str) -> None:
        begin, end = ("\r\x1b[2K", "") if self._terminal else ("", "\n")
        try:
            print(f"{begin}leakcheck: {printable(f'{self._name}: {text}')}", end=end, file=sys.stderr, flush=True)
        except OSError as error:
            # If stderr is closed or full, the result goes elsewhere, or printing it fails with a message.
            if isinstance(error, BrokenPipeError):
                raise


def in_words(seconds: float) -> str:
    """Return a duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
