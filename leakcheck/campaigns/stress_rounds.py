"""What a campaign ``stress`` saw of its arenas so far: with the records, all that it needs to go on in new ones."""

from typing import Any

import msgspec

from leakcheck.campaigns.campaign import Made
from leakcheck.report import Leak
from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.record import Record


class Rounds(msgspec.Struct):
    """What was seen of the arenas: the rounds that were `observed`, of `begun` ones, and what they showed."""

    begun: int = 0
    observed: set[int] = set()
    left: list[SharedRemnant] = []
    first_run: list[Leak] = []
    settled_ms: dict[int, float] = {}
    gaps: dict[str, str] = {}
    untied: list[str] = []
    sick: list[str] = []
    cleanup_failures: list[str] = []
    stalls: list[str] = []
    deepest: int = 0


def left_so_far(made: Made[Any, Record]) -> list[SharedRemnant]:
    """Return copies of what is left; a failed run has no record."""
    ids = {record.id for record in made.trials}
    left = seen_so_far(made).left
    return [msgspec.structs.replace(one, runs=[run for run in [*one.runs] if run in ids]) for one in left]


def seen_so_far(made: Made[Any, Record]) -> Rounds:
    """Return what was seen of the arenas so far. They may be under observation meanwhile."""
    before, executor = made.facts.before, made.executor
    arenas, known = executor.arenas, {(leak.kind, leak.label) for leak in before.first_run}
    # Before what they showed: then each of them is in it.
    observed = before.observed | {number for arena in arenas for number in [*arena.observed]}
    return Rounds(
        # The observation at the end has a number of its own, which no later round is to have.
        begun=max([executor.rounds, *observed]),
        observed=observed,
        # With runs whose records are still under way. What an observation has shown counts once it is over: if the
        # campaign is cut off before, the submissions of its round are made again.
        left=[*before.left, *(one for arena in arenas for one in arena.judged() if one.round in observed)],
        first_run=[
            *before.first_run,
            *(leak for leak in [*executor.first_run] if (leak.kind, leak.label) not in known),
        ],
        settled_ms=before.settled_ms | {number: ms for arena in arenas for number, ms in [*arena.settled_ms.items()]},
        gaps=before.gaps | {kind: reason for arena in arenas for kind, reason in [*arena.gaps.items()]},
        untied=[*before.untied, *(leak.kind for arena in arenas for leak in [*arena.untied.values()])],
        sick=[*executor.sick],
        cleanup_failures=[*executor.cleanup_failures],
        stalls=[*executor.stalls],
        deepest=executor.deepest,
    )
