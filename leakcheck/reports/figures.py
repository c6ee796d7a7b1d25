"""What the page draws beside tables, as plain data: no format of a report knows a campaign."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Cell", "Curves", "Figure", "Line", "Lives", "Map", "Mix", "Share", "Thing", "Tone"]

Tone: TypeAlias = Literal["good", "bad", "open"]
"""How a number is coloured: as it should be, a failure, not decided."""


class Share(msgspec.Struct, frozen=True):
    """So many of one sort."""

    name: str
    count: int
    tone: Tone


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What each row of a table consists of, such as the outcomes by phase."""

    title: str
    of: str
    shares: str
    rows: Sequence[tuple[str, Sequence[Share]]]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One instant of a run: what came of it, in a word (empty: it was not tried), and more about it in lines.

    `joined` is whether it belongs to the cell before it, as the instant after a call to the one before it.
    """

    name: str
    outcome: str
    tone: Tone
    more: Sequence[str] = ()
    joined: bool = False


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """All instants of a run in order, by phase. `left_out` is how many points are not in it."""

    title: str
    phases: Sequence[tuple[str, Sequence[Cell]]]
    left_out: int = 0


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """What exists from the call number `begin` to the call number `end` (None: to the last one and on).

    `cuts` are the calls at which a kill leaves it.
    """

    kind: str
    name: str
    begin: int
    end: int | None
    said: str
    cuts: Sequence[int] = ()


class Lives(msgspec.Struct, frozen=True, kw_only=True):
    """How long what a run makes exists, of so many `calls`. A phase is a name and the number of its first call.

    `cuts` are the calls at which a kill leaves something, each with what is said of it.
    """

    title: str
    calls: int
    phases: Sequence[tuple[str, int]]
    things: Sequence[Thing]
    cuts: Sequence[tuple[int, str]] = ()
    left_out: int = 0


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a diagram: points (x, y) in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """Lines over the time of a run, in seconds from its beginning; `unit` is that of their values."""

    title: str
    unit: str
    lines: Sequence[Line]


Figure: TypeAlias = Mix | Map | Lives | Curves
