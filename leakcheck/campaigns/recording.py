"""What is kept of a campaign while it runs, so that it can go on after it was cut off."""

import abc
from collections.abc import Callable, Collection, Sequence
from typing import Any

from leakcheck.campaigns.result import Result


class StoredTrials(Sequence[Any]):
    """Trials that stay in a store: memory does not grow with their number."""

    @abc.abstractmethod
    def append(self, trial: Any) -> None:
        """Count one more; the recording writes it."""

    @abc.abstractmethod
    def drop(self, numbers: Collection[int]) -> None:
        """Remove those of these numbers: they are made again."""


class Recording:
    """Keeps nothing. `leakcheck.evidence` has the one that writes to a store.

    `trials` are those that were made before the campaign was cut off, in `took` seconds; `kept` is what it needed to go
    on then, and `result` its result if it had ended.
    """

    trials: Sequence[Any] = ()
    took: float = 0
    kept: bytes = b""
    result: Result | None = None

    def begin(self, wanted: int | None) -> None:
        """Called before the first trial, with how many there will be; None: not known."""

    def add(self, trial: Any, kept: Callable[[], bytes]) -> None:
        """Keep a trial; `kept` returns what the campaign would need to go on after it."""

    def end(self, trials: Sequence[Any], result: Result, kept: bytes, took: float) -> None:
        """Keep the result, the trials as they were evaluated at the end, and what it takes to go on if not complete."""
