"""How gracefully targets fail under an exhausted resource: criteria and findings of ``exhaust``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from injectors.exhaustion import MOMENTS
from leakcheck.campaigns.campaign import Check, Judged, Made
from leakcheck.campaigns.criteria import at_most
from leakcheck.campaigns.findings import clusters, without_residue
from leakcheck.campaigns.result import Finding
from leakcheck.targets import Target
from leakcheck.trials.aftermath import NEXT_RUN
from leakcheck.trials.exhausted import Exhausted
from leakcheck.trials.trial import Trial

__all__ = ["BLAMED", "CRASHED", "GRACE", "LATE", "MISSED", "UNNAMED", "is_hit", "row", "status_of", "ungraceful"]

CRASHED = "supervisors or helpers that crashed"
UNNAMED = "errors that do not name what was exhausted"
BLAMED = "statuses that blame a program that never ran"
LATE = "slowest next submission after the release, ms"
MISSED = "resources and moments that no trial exhausted"

_NOTHING = Exhausted()
# An error may have two causes.
_MANY = 3


def is_hit(trial: Trial) -> bool:
    """Return whether the target ran against the limit."""
    return bool(_of(trial).proof)


def row(trial: Trial) -> str:
    """Return the resource of a trial, and the moment at which it was exhausted."""
    plan = trial.case.plan
    return f"{plan.kind} {next((one for one in MOMENTS if one in plan.flags), MOMENTS[0])}"


def status_of(trial: Trial) -> str:
    """Return what the target reported."""
    return _of(trial).status or "none"


def _took(trial: Trial) -> float:
    return trial.timing_ms.get(NEXT_RUN, 0)


def _limit(target: Target) -> float:
    return target.adapter.exhaustion.within * 1000


def _slow(made: Made[Any, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if _took(trial) > _limit(made.target)]


def _in_time(made: Made[Any, Trial]) -> Iterator[Judged]:
    """Require that the next submission after a release is done in time."""
    slowest = round(max(map(_took, made.trials), default=0), 1)
    yield from at_most(LATE, lambda _: slowest, _limit(made.target), "leaked")(made)


def ungraceful(campaign: str, made: Made[Any, Trial]) -> Iterator[Finding]:
    """Yield each way in which the target fails without grace, by resource."""
    for what, some, how in (
        ("crash", _crashed(made), _how_crashed),
        ("unnamed", _unnamed(made), _how_unnamed),
        ("blamed", _blaming(made), _how_blamed),
        ("slow", _slow(made), _how_slow),
    ):
        yield from without_residue(campaign, made, what, some, lambda trial: trial.case.plan.kind, how)


def _of(trial: Trial) -> Exhausted:
    return trial.exhausted or _NOTHING


def _crashed(made: Made[Any, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if _of(trial).crash]


def _how_crashed(trial: Trial) -> str:
    return f"{_of(trial).crash}: {_of(trial).words}"


def _unnamed(made: Made[Any, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if _misnamed(made, trial)]


def _misnamed(made: Made[Any, Trial], trial: Trial) -> bool:
    words, found = made.target.adapter.exhaustion.words, _of(trial).heard
    own = words.get(trial.case.plan.kind)
    if own is None or found is None:
        return False
    # What each run says tells of nothing, nor does what names all there is.
    telling = {word for word in found if word not in made.facts}
    if len(words) >= _MANY and all(map(telling.intersection, words.values())):
        return True
    if telling.intersection(own):
        return False
    if not telling:
        # Whom the kernel kills can say nothing.
        return not (_of(trial).killed or _of(trial).unsure)
    # If memory is lacking, the kernel may report another lack: tmpfs has no room then (mm/shmem.c, ENOSPC).
    told = [words.get(name, ()) for name in _of(trial).met if trial.case.plan.kind == "memory"]
    return not any(map(telling.intersection, told))


def _how_unnamed(trial: Trial) -> str:
    named = f", but: {', '.join(some)}" if (some := _of(trial).heard) else ""
    return f"the error does not name what was exhausted{named}: {_of(trial).words}"


def _blaming(made: Made[Any, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if _of(trial).blames] if _tells(made.target) else []


def _how_blamed(trial: Trial) -> str:
    return f"status {_of(trial).status} of a program that never ran: {_of(trial).words}"


def _how_slow(trial: Trial) -> str:
    return f"the next submission took {_took(trial) / 1000:.1f} s"


def _tells(target: Target) -> bool:
    """Return whether the target can report a failure of its own: of an exit code, nobody knows whose it is."""
    return target.adapter.status.source != "exit"


def _missed(made: Made[Any, Trial]) -> list[str]:
    if made.options.iterations and made.options.plan is None and any(map(is_hit, made.trials)):
        # Of some, only levels were drawn that are none to the target.
        return []
    # What cannot be exhausted here is unknown already.
    able = [trial for trial in made.trials if not _of(trial).refused]
    return [name for name, some in clusters(able, row).items() if not any(map(is_hit, some))]


def _if(applies: Callable[[Target], bool], name: str, which: Callable[[Any], Sequence[Trial]]) -> Check:
    def check(made: Made[Any, Trial]) -> Iterator[Judged]:
        if applies(made.target):
            yield from at_most(name, lambda made: len(which(made)), 0, "unknown")(made)

    return check


GRACE: Sequence[Check] = (
    at_most(CRASHED, lambda made: len(_crashed(made)), 0, "unknown"),
    _if(lambda target: bool(target.adapter.exhaustion.words), UNNAMED, _unnamed),
    _if(_tells, BLAMED, _blaming),
    _in_time,
    at_most(MISSED, lambda made: len(_missed(made)), 0, "unknown"),
)
"""What is asked of each target, and of one that declares words, or that can report failures of its own."""
