"""How good the oracle is: of the calls that only claim to have released something, which are reported?"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from injectors.syscalls import Syscalls
from leakcheck.campaigns.campaign import Judged, Made
from leakcheck.campaigns.result import Criterion
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.trial import Trial

if TYPE_CHECKING:
    from injectors import Plan

_LIMIT = 0.99


class Lies(msgspec.Struct, frozen=True):
    """The plans that lied, those that changed the state in which a run ends, and how, where that is not reported.

    A plan that was tried several times has changed the state if it did so each time.
    """

    made: list[str]
    differing: list[str]
    missed: dict[str, list[str]]


def lies(trials: Sequence[Trial]) -> Lies:
    """Return what lies changed, beside the trials with a delay in their place."""
    honest: dict[str, list[Mapping[str, int]]] = defaultdict(list)
    lied: dict[Plan, list[Trial]] = defaultdict(list)
    for trial in trials:
        injector = Syscalls.of(trial.case.plan)
        if not (trial.fired and trial.state):
            continue
        if all(fault.mode == "delay" for fault in injector.faults):
            honest[injector.stage].append(trial.state)
        else:
            lied[trial.case.plan].append(trial)
    differing: list[str] = []
    missed: dict[str, list[str]] = {}
    for plan, alike in lied.items():
        stage = Syscalls.of(plan).stage
        each = [_differences(trial.state, honest[stage]) for trial in alike]
        if all(each):
            differing.append(str(plan))
            if not any(map(_reported, alike)):
                missed[str(plan)] = each[0]
    return Lies([*map(str, lied)], differing, missed)


def _reported(trial: Trial) -> bool:
    """Return whether something is reported to be there at the end of the stage of the fault."""
    # A recovery is one of a crashed run, which left something that it did remove.
    recovery = Syscalls.of(trial.case.plan).stage == "recover"
    return trial.outcome in FAILING or any(not recovery or one.by != "recovery" for one in trial.left)


def _differences(state: Mapping[str, int], honest: Sequence[Mapping[str, int]]) -> list[str]:
    """Return of what there is more or less than honest runs leave; nothing if there is none to compare with."""
    names = {name for one in (state, *honest) for name in one}
    found = []
    for name in sorted(names) if honest else ():
        counts = [one.get(name, 0) for one in honest]
        if not min(counts) <= state.get(name, 0) <= max(counts):
            found.append(f"{name}: {state.get(name, 0)}, not {min(counts)} to {max(counts)}")
    return found


def recall(made: Made[Any, Trial]) -> Iterator[Judged]:
    """Require that the oracle reports 99 % of the lies that changed the state in which a run ends."""
    found = lies(made.trials)
    changed = len(found.differing)
    share = 1 - len(found.missed) / changed if changed else 1.0
    yield (
        Criterion(
            name="share of lies with another end state that are reported",
            passed=share >= _LIMIT if changed else None,
            measured={"lies": len(found.made), "another end state": changed, "share": round(share, 4)},
            limit=_LIMIT,
        ),
        "unknown",
    )
