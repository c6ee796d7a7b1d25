"""What a target tells of its state files: criteria and findings of ``state``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from injectors import Plan
from injectors.damages import MOVES, NONE, PLACES, is_control, kind_of
from leakcheck.campaigns.campaign import Check, Judged, Made
from leakcheck.campaigns.criteria import at_most
from leakcheck.campaigns.findings import without_residue
from leakcheck.campaigns.result import Finding
from leakcheck.targets import Target
from leakcheck.trials.trial import Trial

__all__ = ["ABSENT", "DISTRUSTED", "EARLY", "TELLING", "UNFOUNDED", "UNKEPT", "UNTOLD", "damage_of", "mistold"]

DISTRUSTED = "power cuts after which it does not trust its own state"
EARLY = "resources made before the state that names them was on the disk"
UNTOLD = "damages that the target's log does not tell of"
UNFOUNDED = "untouched states that the target's log calls damaged"
UNKEPT = "damaged states of which nothing is kept where the adapter says"
ABSENT = "declared state files that were never there, and were not damaged"


def damage_of(plan: Plan) -> str:
    """Return the kind of damage that a plan does."""
    return kind_of(plan.argument.rpartition(":")[2])


def mistold(campaign: str, made: Made[Any, Trial]) -> Iterator[Finding]:
    """Yield each kind of damage that the target's log does not tell of, or tells of without cause."""
    log = made.target.adapter.damage.log
    missed = f"not noticed: {log} has no line about it"
    torn = f"after a power cut, it does not trust the state that it wrote itself: see {log}"
    places = ", ".join(made.target.adapter.damage.keeps)
    unkept = f"the damaged file is gone, with what it could tell: nothing is in {places}"
    unfounded = f"{log} tells of damage though nothing was damaged: what it says of other trials proves nothing"
    for id_, detail, trials in (
        ("unnoted", missed, _unnoted(made)),
        ("distrusted", torn, _distrusted(made) if _lasts(made.target) else []),
        ("unfounded", unfounded, _unfounded(made)),
        ("unkept", unkept, _unkept(made)),
    ):
        yield from without_residue(campaign, made, id_, trials, lambda trial: damage_of(trial.case.plan), detail)


def _distrusted(made: Made[Any, Trial]) -> list[Trial]:
    return [
        trial for trial in made.trials if trial.noted and damage_of(trial.case.plan) == "cut" and not _untouched(trial)
    ]


def _unnoted(made: Made[Any, Trial]) -> list[Trial]:
    """Return the trials with damage to a whole file that nobody noted."""
    quiet = (NONE, "at", "cut", *MOVES)
    return [
        trial
        for trial in made.trials
        if trial.noted is False and damage_of(trial.case.plan) not in quiet and trial.case.plan.flags != ("living",)
    ]


def _unfounded(made: Made[Any, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if trial.noted and _untouched(trial)]


def _unkept(made: Made[Any, Trial]) -> list[Trial]:
    """Return the trials in which the target distrusted a file with some content, and kept nothing of it."""
    nothing = (NONE, "empty", "at", "cut", *MOVES, *(kind_of(place) for place in PLACES))
    return [
        trial
        for trial in made.trials
        if trial.noted and trial.kept is False and damage_of(trial.case.plan) not in nothing
    ]


def _untouched(trial: Trial) -> bool:
    return is_control(trial.case.plan.argument.rpartition(":")[2])


def _logs(target: Target) -> bool:
    return bool(target.adapter.damage.log)


def _keeps(target: Target) -> bool:
    return bool(target.adapter.damage.keeps) and _logs(target)


def _lasts(target: Target) -> bool:
    return target.adapter.damage.disk


def _none_if(applies: Callable[[Target], bool], name: str, which: Callable[[Any], Sequence[Any]]) -> Check:
    def check(made: Made[Any, Trial]) -> Iterator[Judged]:
        if applies(made.target):
            yield from at_most(name, lambda made: len(which(made)), 0)(made)

    return check


def _all_there(made: Made[Any, Trial]) -> Iterator[Judged]:
    """Require that every declared state file could be damaged, unless a plan names one."""
    if made.options.plan is None:
        absent = [one for one in made.target.adapter.state_files if one not in made.facts.contents]
        yield from at_most(ABSENT, lambda _: len(absent), 0, "unknown")(made)


def _durable(made: Made[Any, Trial]) -> Iterator[Judged]:
    """Require that a state is on the disk before what it names is made, if it is to survive a power cut."""
    if _lasts(made.target) and made.options.plan is None:
        yield from at_most(EARLY, lambda made: len(made.facts.early), 0)(made)


TELLING: Sequence[Check] = (
    _none_if(_logs, UNTOLD, _unnoted),
    _none_if(_logs, UNFOUNDED, _unfounded),
    _none_if(_keeps, UNKEPT, _unkept),
    _none_if(_lasts, DISTRUSTED, _distrusted),
    _durable,
    _all_there,
)
"""What is asked of a target that has a log of damaged state, or a state that is to survive a power cut."""
