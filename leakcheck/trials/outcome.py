"""The outcome of a trial."""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

Outcome: TypeAlias = Literal[
    "clean",
    "bounded",
    "recovered",
    "unknown",
    "not-reached",
    "leaked",
    "false-status",
    "silent",
    "wedged",
    "split-brain",
]
"""Outcomes of one trial, the worst last.

clean: nothing is left. bounded: the residue is never more than one run leaves. recovered: the target's recovery removed
it, or its next run in the same box if boxes are reused. unknown: not everything could be observed. not-reached: the
fault did not happen. leaked: something stays. false-status: the target reported a wrong status, or none. silent:
something stays after a recovery that reported success. wedged: the run did not end, the recovery or the next submission
in that box failed, or the next submission ran beside a process of the run. split-brain: the payloads of two runs in one
box ran at the same time.
"""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
FAILING = OUTCOMES[OUTCOMES.index("leaked") :]
"""Those that a target fails by."""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst of several outcomes; clean if there is none."""
    return max(outcomes, key=OUTCOMES.index, default="clean")
