"""Where trials are made: the interface of those who make many, and what they report to."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from leakcheck.trials.case import Case

__all__ = ["Executor", "Ui"]

_Trial = TypeVar("_Trial", covariant=True)


class Ui:
    """What a campaign reports to while it runs. This one ignores all of it."""

    def made(self, trial: Any, count: int) -> None:
        """Take note of one more trial, the `count`-th."""

    def finishing(self, running: int) -> None:
        """Take note that the campaign is to end, and waits for `running` trials."""

    def log(self, text: str) -> None:
        """Take note of what is being done."""


class Executor(Protocol[_Trial]):
    """Makes trials of cases, wherever that is.

    `failure` is why no further trial could be made, None where that is not so; `took` the seconds that the trials took.
    """

    failure: BaseException | None
    took: float

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[_Trial]:
        """Yield each trial once it is made; `cases` is asked for them when all else is ready."""

    def fail(self, error: BaseException) -> None:
        """Begin no further trial, because of `error`."""
