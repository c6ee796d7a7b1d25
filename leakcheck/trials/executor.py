"""The interface of executors, which make many trials, and the one that they report to."""

import abc
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from leakcheck.trials.case import Case

_Trial = TypeVar("_Trial")


class Ui:
    """Receives a campaign's progress. This one ignores all of it."""

    def expect(self, trials: int | None) -> None:
        """Called before the first trial with how many there will be; None: not known."""

    def made(self, trial: Any, count: int) -> None:
        """Called after each trial, the `count`-th."""

    def finishing(self, running: int) -> None:
        """Called when the campaign is interrupted and waits for `running` trials."""

    def log(self, text: str) -> None:
        """Called with what the campaign is doing."""


class Executor(abc.ABC, Generic[_Trial]):
    """Makes trials of cases.

    `failure` is why no further trial could be made, or None; `took` is the seconds that the trials took, those `before`
    the campaign was cut off among them.
    """

    failure: BaseException | None = None
    before: float = 0
    took: float = 0

    @abc.abstractmethod
    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[_Trial]:
        """Yield each trial once it is made; `cases` is called when everything else is ready."""

    def fail(self, error: BaseException) -> None:
        """Start no further trial, because of `error`: the first one is the cause, others may be its consequence."""
        self.failure = self.failure or error
