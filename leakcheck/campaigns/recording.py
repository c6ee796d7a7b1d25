"""What is kept of a campaign while it runs, so that it can go on after it was cut off."""

import abc
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from leakcheck.campaigns.result import Result

if TYPE_CHECKING:
    from leakcheck.campaigns.machine import Machine


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
    on then, and `result` its result if it had ended. `settings` and `changed` are what a `Machine` knew.
    """

    trials: Sequence[Any] = ()
    took: float = 0
    kept: bytes = b""
    settings: str = ""
    changed: str = ""
    result: Result | None = None

    def watch(self, machine: "Machine") -> None:
        """Called before anything runs: what `machine` knows is to be kept, too."""

    def begin(self, wanted: int | None, valid: Sequence[Any]) -> None:
        """Called before the first trial, with how many there will be; None: not known.

        Those of `trials` that are not `valid` any more are made again.
        """

    def add(self, trial: Any, kept: Callable[[], bytes]) -> None:
        """Keep a trial; `kept` returns what the campaign would need to go on after it."""

    def samples(self) -> Sequence[Any]:
        """Return samples of what leakcheck used: `leakcheck.evidence.resources.Sample`, none of this one."""
        return ()

    def end(self, trials: Sequence[Any], result: Result, kept: bytes, took: float) -> None:
        """Keep the result, the trials as they were evaluated at the end, and what it takes to go on if not complete."""
