"""What one submission in a shared arena came to."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.outcome import Outcome, worst

__all__ = ["Record", "behaviour_of", "with_left"]

_LABELS = 8


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One submission in a shared arena.

    `expect` is the status that it must get and `status` what it got, ``none`` where the target gave none; `right` is
    whether that, and exit code and signal where both are given, are as they must be, `detail` why not. `wall_ms` is
    from the target's preparation to its end, `cpu_ms` the processor time of the target with all that it waited for,
    `queued_ms` the wait before. `ended_s` counts from the campaign's start. After its `round` it took `settle_ms` until
    what was going away was gone. `left` is what it left for sure, `may_have_left` what is of it or of another, eight
    things at most. `late`: it did not end by its wall limit, and leakcheck ended it.
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
        """All that hold; none where it is clean."""
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
    """Return the records in the order of their submissions, each with what it left for sure and how long it settled."""
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
    return sorted(
        (
            msgspec.structs.replace(
                record,
                left=of.get(record.id, []),
                may_have_left=may.get(record.id, [])[:_LABELS],
                settle_ms=settled.get(record.round, 0.0),
                ended_s=round(record.ended_s - first, 4),
            )
            for record in records
        ),
        key=lambda record: record.id,
    )
