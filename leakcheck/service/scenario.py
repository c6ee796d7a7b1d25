"""Scenarios: what one is, and how it says what it found."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

__all__ = ["SCENARIOS", "Failed", "NotApplicable", "Profile", "Scenario", "at", "check", "scenario"]

Profile: TypeAlias = Literal["quick", "full"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Failed(Exception):  # noqa: N818 - it is a verdict
    """The service did what it must not; the message says what.

    `evidence` is what was measured, and `history` the actions that show it, if they were searched for.
    """

    def __init__(self, message: str, evidence: Any = None, history: str = "") -> None:
        super().__init__(message)
        self.evidence, self.history = evidence, history


class NotApplicable(Exception):  # noqa: N818 - it is a verdict
    """The service, or this machine, has nothing of the kind; the message says what is missing."""


class Scenario(msgspec.Struct, frozen=True):
    """A scenario: the row of a source document that it answers, its title, and what it does.

    `run` takes a `leakcheck.service.stage.Stage`, and returns what it measured; it raises `Failed` or `NotApplicable`.
    `slow` ones are only in the profile ``full``. `size` limits what may be written to each directory of the arena.
    `prepare` changes the arena before the service starts.
    """

    row: str
    title: str
    run: Callable[[Any], Any]
    slow: bool = False
    size: int | None = None
    prepare: Callable[[Any], None] | None = None


SCENARIOS: dict[str, Scenario] = {}
"""All scenarios by row, in the order in which they run."""


def scenario(row: str, title: str, **options: Any) -> Callable[[_Function], _Function]:
    """Register a function as a scenario."""

    def register(function: _Function) -> _Function:
        SCENARIOS[row] = Scenario(row, title, function, **options)
        return function

    return register


def check(holds: object, message: str, evidence: Any = None) -> None:
    """Raise `Failed` with `message` unless `holds`."""
    if not holds:
        raise Failed(message, evidence)


def at(document: Any, place: str) -> Any:
    """Return what stands at the dotted `place` of a JSON document, the whole if that is empty; None if nothing does."""
    for part in place.split(".") if place else ():
        document = document.get(part) if isinstance(document, dict) else None
    return document
