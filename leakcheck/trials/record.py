"""The record of one submission in a shared arena."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.outcome import Outcome, worst

_LABELS = 8


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One submission in a shared arena.

    `expect` is the expected status and `status` the reported one, ``none`` if the target reported none. `right` is
    whether the status is right, and the exit code and signal too if known; `detail` is why not. `wall_ms` is the time
    from the target's preparation to its end, `cpu_ms` the processor time of the target including all children it waited
    for, `queued_ms` the wait before. `ended_s` counts from the campaign's start. After its `round`, transient residue
    was gone after `settle_ms`. `left` is what it certainly left, `may_have_left` what it or another submission left, at
    most eight items. `late`: it did not end within its wall limit, and leakcheck ended it.
    """

    id: int
    spec: str
    expect: str
    status: str
    right: bool
    exit_code: int | None = None
    signal: int | None = None
    wall_ms: float
    cpu_ms: float | None = None
    queued_ms: float
    ended_s: float
    box: int
    round: int
    settle_ms: float = 0
    detail: str = ""
    left: list[str] = []
    may_have_left: list[str] = []
    late: bool = False

    @property
    def outcomes(self) -> Iterator[Outcome]:
        """All outcomes that hold; none if it is clean."""
        if self.left:
            yield "leaked"
        if self.may_have_left:
            yield "unknown"
        if not self.right:
            yield "false-status"

    @property
    def outcome(self) -> Outcome:
        """The worst of its outcomes."""
        return worst(self.outcomes)


def behaviour_of(spec: str) -> str:
    """Return language and behaviour of a spec."""
    return spec.partition("@")[0]


def with_left(records: Sequence[Record], left: Sequence[SharedRemnant], settled: Mapping[int, float]) -> list[Record]:
    """Return the records in the order of their submissions, each with its certain residue and its settle time."""
    of: dict[int, list[str]] = defaultdict(list)
    may: dict[int, list[str]] = defaultdict(list)
    counted: set[tuple[str, tuple[int, ...]]] = set()
    for one in left:
        runs = tuple(one.runs)
        group = (one.leak.kind, runs)
        if not one.stays or (one.each and group in counted):
            continue
        counted.add(group)
        for run in runs:
            if len(runs) == 1:
                of[run].append(one.leak.label)
            elif one.each:
                of[run].append(f"{one.leak.label}, or one like it of {len(runs)} submissions")
            else:
                may[run].append(one.leak.label)
    first = min((record.ended_s - record.wall_ms / 1000 for record in records), default=0.0)
    return [
        msgspec.structs.replace(
            record,
            left=of.get(record.id, []),
            may_have_left=may.get(record.id, [])[:_LABELS],
            settle_ms=settled.get(record.round, 0.0),
            ended_s=round(record.ended_s - first, 4),
        )
        for record in sorted(records, key=lambda record: record.id)
    ]
