"""What runs that contended for one box came to, and whether a lock can have done that."""

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from leakcheck.trials.outcome import Outcome


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a contest; times in milliseconds since its begin.

    `waits`: it was launched to wait for the box. `faulted`: it was killed. `admitted`: its payload ran, as seen by
    itself or from outside; `complete`: to its end, which nobody but the witness brought about. `refused`: it said, as
    the adapter declares, that the box is in use. `tolerated`: the lock was damaged, so that it may fail. `starts` is
    how often its program was started, and held until all other payloads had been looked for. `unheld`: its payload ran,
    and its start was not held. `copied`: somebody opened its program who did not execute it. `window` is when its
    payload was alive as seen from outside, `told` as it said itself.
    """

    number: int
    waits: bool = False
    faulted: bool = False
    admitted: bool = False
    complete: bool = False
    refused: bool = False
    tolerated: bool = False
    unheld: bool = False
    copied: bool = False
    starts: int = 1
    status: str = ""
    words: str = ""
    launched: float = 0
    ended: float = 0
    window: tuple[float, float] | None = None
    told: tuple[int, int] | None = None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of a contest, by their number, and which of their payloads ran at the same time.

    `killed` is when the holder was killed, and `free` when the first payload after that was seen to run; `recovered`:
    only after the target's recovery. `within` is how long that may take, in milliseconds. `refusals` are what is wrong
    with what else was run meanwhile. `blind` is why no start of a payload could be held; empty if they could. `strange`
    is what was executed in the place of the programs, and is none of them.
    """

    attempts: Sequence[Attempt]
    overlaps: Sequence[tuple[int, int]] = ()
    killed: float | None = None
    free: float | None = None
    recovered: bool = False
    within: float = 10_000
    refusals: Sequence[str] = ()
    blind: str = ""
    strange: Sequence[str] = ()

    @property
    def ended(self) -> float:
        """When the last run ended."""
        return max((attempt.ended for attempt in self.attempts), default=0)

    @property
    def recovered_ms(self) -> float | None:
        """How long the box took to be free again; None if no holder was killed, or it never was."""
        return None if self.killed is None or self.free is None else self.free - self.killed


def judge(history: History) -> Iterator[tuple[Outcome, str]]:
    """Yield what no lock does: two in the box at once, a wrong status, or nobody in it; or that nobody can know."""
    yield from _exclusion(history)
    for attempt in history.attempts:
        if not attempt.faulted and (wrong := _wrong(attempt)):
            yield "false-status", f"contender {attempt.number} {wrong}"
    for attempt in history.attempts:
        if attempt.refused and not attempt.tolerated and not _had_by_another(attempt, history):
            yield "false-status", f"contender {attempt.number} was refused while nobody had the box: {attempt.words}"
    for refusal in history.refusals:
        yield "false-status", refusal
    if history.killed is not None:
        took = history.recovered_ms
        if took is None:
            yield "wedged", f"the box of a killed holder was not free again in {history.within / 1000:g} s"
        elif took > history.within:
            yield "wedged", f"the box of a killed holder was free again only after {took / 1000:.1f} s"
    # A damaged lock may need the recovery, which comes next.
    elif not any(attempt.admitted or attempt.tolerated for attempt in history.attempts):
        yield "wedged", f"none of {len(history.attempts)} contenders got the box"


def _exclusion(history: History) -> Iterator[tuple[Outcome, str]]:
    for one, other in sorted({*history.overlaps, *_told(history.attempts)}):
        yield "split-brain", f"the payloads of contenders {one} and {other} ran in one box at the same time"
    if history.blind:
        yield "unknown", history.blind
        return
    for attempt in history.attempts:
        if attempt.unheld:
            yield "unknown", f"the payload of contender {attempt.number} ran, but nobody saw it start"
        elif attempt.copied:
            what = f"the program of contender {attempt.number} was opened by a process that did not execute it"
            yield "unknown", f"{what}: nobody can know whether it ran as a copy"
    yield from (("unknown", f"{one!r} was executed, which is no contender's program") for one in history.strange)


def _told(attempts: Sequence[Attempt]) -> Iterator[tuple[int, int]]:
    """Yield whose payloads ran at the same time by their own words, which are inside of the time that they ran."""
    times = sorted((one.told, one.number) for one in attempts if one.told is not None)
    for (early, one), (late, other) in itertools.combinations(times, 2):
        if late[0] < early[1]:
            yield min(one, other), max(one, other)


def _had_by_another(refused: Attempt, history: History) -> bool:
    """Return whether anybody can have had the box at some instant of a refused run: in no order else is it a lock.

    A dead holder has it until somebody else is admitted.
    """
    free = history.ended if history.free is None else history.free
    return any(
        one.launched <= refused.ended and refused.launched <= (free if one.faulted else one.ended)
        for one in history.attempts
        if one.number != refused.number and not one.refused
    )


def _wrong(attempt: Attempt) -> str:
    """Return what is wrong with the status of one that nothing happened to."""
    said = f"status {attempt.status or 'none'}: {attempt.words}"
    if attempt.starts > 1:
        return f"was started {attempt.starts} times; {said}"
    if attempt.status == "OK" and not attempt.complete:
        return f"was not seen to run to its end; {said}"
    if attempt.admitted:
        return "" if attempt.status == "OK" else f"had the box; {said}"
    if attempt.tolerated and attempt.status != "OK":
        return ""
    if attempt.refused:
        return f"was to wait, and was refused: {attempt.words}" if attempt.waits else ""
    return f"was neither admitted nor refused as the adapter's locks say; {said}"
