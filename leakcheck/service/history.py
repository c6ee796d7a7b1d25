"""What clients saw of jobs, and whether it can be: the model that every scenario is checked against.

A job is in one state at a time; an end is for good; an accepted job is never lost; no user has more unfinished jobs
than the limit at any instant. Requests overlap, so an observation only says what was true at some instant between its
sending and its answer: only what holds for every such instant counts.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec

__all__ = ["AT_WORK", "ENDS", "History", "Seen", "most_active", "most_at_once", "spans"]

AT_WORK = ("running", "stalled")
"""The places of states in which a job is at work."""
ENDS = ("succeeded", "failed", "cancelled")
"""The places of states that are an end."""
Span: TypeAlias = tuple[float, float]
"""From when to when, in seconds of the monotonic clock."""


class Seen(msgspec.Struct, frozen=True):
    """One observation of a job: its state, and the place of that in the contract (empty: the contract has no such).

    `sent` and `answered` are seconds of the monotonic clock. `accepted` is whether it is the answer that created it.
    """

    job: str
    tenant: str
    state: str
    place: str
    sent: float
    answered: float
    accepted: bool = False
    lost: bool = False

    @property
    def ended(self) -> bool:
        """Whether it is an end."""
        return self.place in ENDS


class History:
    """All that clients saw; observations may be added by several threads."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._seen: dict[str, list[Seen]] = defaultdict(list)

    def add(self, seen: Seen) -> None:
        """Add an observation."""
        with self._lock:
            self._seen[seen.job].append(seen)

    def forget_ended(self) -> None:
        """Accept from now on that jobs which have ended are gone: they were cleaned up as asked."""
        with self._lock:
            for job in [job for job, seen in self._seen.items() if any(one.ended for one in seen)]:
                del self._seen[job]

    def restart(self) -> None:
        """Forget everything."""
        with self._lock:
            self._seen.clear()

    @property
    def jobs(self) -> dict[str, list[Seen]]:
        """The observations of each job, in the order of their answers."""
        with self._lock:
            return {job: sorted(seen, key=lambda one: one.answered) for job, seen in self._seen.items()}

    def problems(self) -> list[str]:
        """Return what cannot be, as sentences; none if the history is possible."""
        jobs = self.jobs
        found = [problem for job, seen in jobs.items() for problem in _problems_of(job, seen)]
        if self._limit is not None:
            for tenant in sorted({seen[0].tenant for seen in jobs.values()}):
                most = most_active(seen for seen in jobs.values() if seen[0].tenant == tenant)
                if most > self._limit:
                    found.append(f"quota: {tenant} had {most} unfinished jobs at one instant, limit {self._limit}")
        return found


def most_active(jobs: Iterable[list[Seen]]) -> int:
    """Return how many of these jobs were certainly unfinished at one instant."""

    def span(seen: list[Seen]) -> Iterator[Span]:
        accepted = [one.answered for one in seen if one.accepted]
        unfinished = [one.sent for one in seen if not one.ended and not one.lost]
        if accepted and unfinished and max(unfinished) >= accepted[0]:
            yield accepted[0], max(unfinished)

    return most_at_once(span(seen) for seen in jobs)


def spans(seen: list[Seen]) -> Iterator[Span]:
    """Yield from when to when a job certainly was at work, at least."""
    for is_at_work, some in itertools.groupby(seen, key=lambda one: one.place in AT_WORK):
        ones = [*some]
        if is_at_work and ones[0].answered <= ones[-1].sent:
            yield ones[0].answered, ones[-1].sent


def most_at_once(jobs: Iterable[Iterable[Span]]) -> int:
    """Return how many spans of time overlap at one instant at most."""
    # A span is closed: one that begins at the instant at which another ends overlaps it.
    edges = sorted((when, edge) for job in jobs for begin, end in job for when, edge in ((begin, 0), (end, 1)))
    active = most = 0
    for _, edge in edges:
        active += 1 if edge == 0 else -1
        most = max(most, active)
    return most


def _problems_of(job: str, seen: list[Seen]) -> Iterator[str]:
    for one in seen:
        if not one.place and not one.lost:
            yield f"job {job}: state {one.state!r} is not in the contract"
            return
    end: Seen | None = None
    for one in seen:
        if end is not None and one.sent > end.answered:
            if one.lost:
                yield f"job {job}: lost after it was {end.state}"
                return
            if one.state != end.state:
                yield f"job {job}: {end.state}, and later {one.state}"
                return
        if one.lost and any(other.answered < one.sent for other in seen if not other.lost):
            yield f"job {job}: accepted, and lost later"
            return
        if end is None and one.ended:
            end = one
