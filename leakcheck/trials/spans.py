"""What a run without a fault makes, and how long it exists: from the call that makes it to the one that removes it."""

from collections.abc import Iterator, Sequence

import msgspec

from leakcheck.trials.calls import Call, Ended, Event
from leakcheck.trials.crash_points import PHASE_OF
from leakcheck.trials.effects import Key, creates, removes

__all__ = ["MOST", "Span", "Spans", "spans_of"]

MOST = 120
"""Things that are shown of one run; those that exist longest come first."""
_LABEL = 120


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing: when it began and ended, by the number of the call; no `end`: it outlives the last call.

    `created` and `released` are the points of these calls; `released` is empty if the end of a process released it.
    """

    kind: str
    label: str
    created: str
    begin: int
    released: str = ""
    end: int | None = None


class Spans(msgspec.Struct, frozen=True, kw_only=True):
    """What a run makes: its calls in order, by `calls` and the `phases` in which they are, and what they make.

    A phase is a name and the number of its first call. `left_out` is how many things are not among the `spans`.
    """

    calls: list[str]
    phases: list[tuple[str, int]]
    spans: list[Span]
    left_out: int = 0


def spans_of(events: Sequence[Event]) -> Spans:
    """Return what the run of these `events` makes and removes, in the order in which it is made."""
    calls = [one for one in events if isinstance(one, Call)]
    found = sorted(_spans(events), key=lambda span: span.begin)
    longest = sorted(found, key=lambda span: (span.begin - (len(calls) if span.end is None else span.end), span.begin))
    kept = {id(span) for span in longest[:MOST]}
    phases: list[tuple[str, int]] = []
    for number, call in enumerate(calls):
        phase = PHASE_OF.get(call.point.stage, call.phase)
        if not phases or phases[-1][0] != phase:
            phases.append((phase, number))
    return Spans(
        calls=[call.name for call in calls],
        phases=phases,
        spans=[span for span in found if id(span) in kept],
        left_out=max(0, len(found) - MOST),
    )


def _spans(events: Sequence[Event]) -> Iterator[Span]:
    alive: dict[Key, tuple[Call, int]] = {}
    number = -1
    for event in events:
        if isinstance(event, Call):
            number += 1
            for key in removes(event):
                if (made := alive.pop(key, None)) is not None:
                    yield _span(key, *made, event.name, number)
            for key in creates(event):
                # An identity that comes again without a call that removed the first belongs to something new.
                if (made := alive.pop(key, None)) is not None and key[0] != "lock":
                    yield _span(key, *made, "", number)
                alive[key] = made if made is not None and key[0] == "lock" else (event, number)
        elif isinstance(event, Ended):
            ended = [key for key, made in alive.items() if _ends_with(key, *made, event)]
            for key in ended:
                yield _span(key, *alive.pop(key), "", max(number, 0))
    for key, made in alive.items():
        yield _span(key, *made, "", None)


def _ends_with(key: Key, maker: Call, _: int, ended: Ended) -> bool:
    """Return whether something ends with a process: this itself, its new namespaces, and the locks that it took."""
    if maker.point.stage != ended.stage:
        return False
    if key[0] in ("process", "namespace") and maker.child:
        return maker.child == ended.role
    return key[0] in ("lock", "namespace") and maker.point.role == ended.role


def _span(key: Key, maker: Call, begin: int, released: str, end: int | None) -> Span:
    kind, label = _named(key, maker)
    return Span(kind=kind, label=label[:_LABEL], created=maker.name, begin=begin, released=released, end=end)


def _named(key: Key, maker: Call) -> tuple[str, str]:
    """Return the kind of a thing in words, and what it is called."""
    path = maker.now.path if maker.now is not None else ""
    match key[0]:
        case "process":
            return "process", maker.child or str(key[2])
        case "namespace":
            names = [name for name, inode in maker.namespaces.items() if inode == key[2]]
            return "namespace", names[0] if names else str(key[2])
        case "mount" | "mounted":
            return "mount", path or str(key[2])
        case "inode" | "named":
            made = maker.point.operation
            what = {"mkdir": "directory", "symlink": "link", "bind": "socket"}.get(made, "file")
            if what == "directory" and maker.point.class_.startswith("/sys/fs/cgroup"):
                what = "cgroup"
            return what, path or str(key[2])
        case "lock":
            return "lock", maker.before.path if maker.before is not None else str(key[2])
        case other:
            return other, str(key[2])
