"""The calls of a run, as the tracer recorded them for an explanation."""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from injectors.crash import STAGES, Point, Stage

__all__ = ["Call", "Ended", "Event", "Made", "calls_of"]

# What the kernel returns inside for a call that a signal interrupted, and that is made again (include/linux/errno.h).
_RESTARTED = range(512, 517)


class Object(msgspec.Struct, frozen=True):
    """What a call is about: a file, directory or socket, by device and inode; `mount` is the mount on which it is."""

    path: str
    dev: str
    ino: int
    mount: int


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call at a point. Names in `text` are escaped.

    `value` is what it returned, None if that was not seen. `looked` is whether its object was looked for; `before` and
    `now` are it before the call and after it. `source` is what it renames, `child` the role that it created,
    `namespaces` the inodes of its namespaces by name, `id` the key or IPC object that it changes.
    """

    point: Point
    phase: str
    text: str
    value: int | None = None
    looked: bool = False
    before: Object | None = None
    now: Object | None = None
    source: Object | None = None
    child: str = ""
    namespaces: Mapping[str, int] = {}
    id: int | None = None

    @property
    def name(self) -> str:
        """The name of its point, with the stage."""
        return f"{self.point.stage}:{self.point}"

    @property
    def result(self) -> str:
        """What it returned, errors by name; empty if that was not seen."""
        if self.value is None:
            return ""
        if -self.value in _RESTARTED:
            return "interrupted"
        return errno.errorcode.get(-self.value, str(self.value)) if self.value < 0 else str(self.value)


class Ended(msgspec.Struct, frozen=True):
    """The end of a process: its exit `code`, or the signal -N that ended it."""

    stage: Stage
    role: str
    code: int


class Made(msgspec.Struct, frozen=True):
    """A process that was made by a call which is no point: the payload's, or one that the tracer does not see.

    `role` is that of the new process, `by` that of its maker; they are the same if the payload made it.
    """

    stage: Stage
    role: str
    by: str
    pid: int


class Fired(msgspec.Struct, frozen=True):
    """The instant of a fault; a run that is crashed for its recovery has one, too."""

    stage: Stage = "launch"


Event = Call | Ended | Made | Fired


def calls_of(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Event]:
    """Return what happened, in order, from the tracer's reports by stage."""
    return [event for stage in STAGES for event in _stage(stage, reports.get(stage, []))]


def _stage(stage: Stage, lines: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    lines = list(lines)
    # A stage may have several commands, each with numbers of its own.
    returns: dict[int, Mapping[str, Any]] = {}
    events: list[Event] = []
    for line in reversed(lines):
        if "returned" in line:
            returns[line["returned"]] = line
        elif "call" in line:
            events.append(_call(stage, line, returns.pop(line["number"], {})))
        elif "ended" in line:
            status = line["status"]
            events.append(Ended(stage, line["ended"], status >> 8 if status & 0x7F == 0 else -(status & 0x7F)))
        elif "made" in line:
            events.append(Made(stage, line["made"], line["by"], line["pid"]))
        elif "fired" in line or "injected" in line:
            events.append(Fired(stage))
    yield from reversed(events)


def _call(stage: Stage, line: Mapping[str, Any], end: Mapping[str, Any]) -> Call:
    return Call(
        point=Point(stage, line["role"], line["operation"], line["class"], line["ordinal"]),
        phase=line["phase"],
        text=line["call"],
        value=end.get("value"),
        looked="object" in line,
        before=msgspec.convert(line.get("object"), Object | None),
        now=msgspec.convert(end.get("now"), Object | None),
        source=msgspec.convert(line.get("source"), Object | None),
        child=end.get("child", ""),
        namespaces=end.get("namespaces", {}),
        id=line.get("id"),
    )
