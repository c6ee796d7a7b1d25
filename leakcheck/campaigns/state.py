"""The campaign ``state``: does a target notice damage to its own state, and work on all the same?"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from injectors import Plan
from injectors.damages import CUTS, NONE, PLACES, WHOLE, Found, content_damages, control_of, damaged, first_cut
from injectors.state import state_plan
from leakcheck.campaigns.campaign import Check, Made, Option, TrialOptions
from leakcheck.campaigns.criteria import reached, stated, zero
from leakcheck.campaigns.findings import clusters
from leakcheck.campaigns.result import Finding
from leakcheck.campaigns.telling import TELLING, damage_of, mistold
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.errors import NotApplicableError, UsageError
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.disk import unsynced
from leakcheck.trials.executor import Ui
from leakcheck.trials.neighbour import has_boxes
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.power import Cut, WithCuts, cuts
from leakcheck.trials.recovery_cuts import recovery_cuts
from leakcheck.trials.runner import Stop
from leakcheck.trials.state_files import described, record_state_files
from leakcheck.trials.state_history import moments, record_history
from leakcheck.trials.trial import Trial

# Lengths, and bits, of a file that are tried, by profile.
_PLACES_OF = {"quick": 8, "full": 512}
# Power cuts of each model in whose recovery power fails again.
_RECOVERIES_OF = {"quick": 3, "full": 16}
# Damages while another box is in use.
_BESIDES_OF = {"quick": 2, "full": 32}
_REPLAYS = 20
_T = TypeVar("_T")
_ALONE = "it is so without any damage, too"

Profile = Literal["quick", "full"]


class StateOptions(TrialOptions, frozen=True, kw_only=True):
    """Which damages to try; a `plan` replaces them all."""

    profile: Annotated[Profile, Option("Each kind of damage at some places of a file, or at all.")] = "full"
    iterations: Annotated[int, Option("At most this many damages, drawn; 0: all, or 20 trials of a --plan.", "N")] = 0
    fewest = 0

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.host:
            raise UsageError("--host: state files are damaged in arenas only; omit it")
        if self.plan is not None and self.plan.kind != "state":
            raise UsageError(f"--plan {self.plan}: no plan of a damage, state:FILE:DAMAGE,sleeping")


class Facts(msgspec.Struct, frozen=True):
    """What is known before the trials.

    By state file as the adapter names it: its content, and the damages that have an instant of their own. What power
    cuts leave, by plan, and those in the `recovery` after one. What was made `early`: before the state that names it
    was on the disk. `boxes`: there is another box to be in use meanwhile.
    """

    contents: Mapping[str, Found] = {}
    moments: dict[str, list[str]] = {}
    cuts: dict[Plan, Cut] = {}
    recovery: dict[Plan, Cut] = {}
    early: list[str] = []
    notes: list[str] = []
    boxes: bool = True


class State(TrialCampaign[StateOptions]):
    """Kills the supervisor while its payload runs, damages a state file, recovers, and runs the next submissions."""

    name = "state"
    question = "Does a target notice damage to its own state, and work on all the same?"
    options = StateOptions
    _cuts: Mapping[Plan, Cut] = MappingProxyType({})

    def prepare(self, target: Target, options: StateOptions, ui: Ui, stop: Stop) -> Facts:
        """Record what the state files contain, and each change of them in an honest run."""
        if not target.adapter.state_files:
            raise NotApplicableError(
                f"not applicable: {target.name} declares no state file; "
                f"if it keeps one, name it in state_files of {target.path}"
            )
        if options.plan is not None and damage_of(options.plan) != "cut":
            return Facts()
        contents = record_state_files(target, stop) if options.plan is None else {}
        recorded = [record_history(target, stop) for _ in range(1 if options.plan else 2)]
        facts = Facts(contents, notes=recorded[0].notes, boxes=has_boxes(target, recorded[0].box.work))
        if not facts.boxes:
            facts.notes.append("no damage was tried beside another box: all boxes of this target are one")
        for declared in target.adapter.state_files:
            if declared in contents:
                ui.log(f"state file {declared}: {described(contents[declared])}")
            elif options.plan is None:
                facts.notes.append(f"state file {declared}: it is not there while the payload runs, and not damaged")
            if why := recorded[0].uncut.get(declared):
                facts.notes.append(f"state file {declared}: no power cut was tried: {why}")
            facts.moments[declared] = [] if options.plan else moments(recorded[0], recorded[1], declared)
            facts.cuts.update(cuts(target, recorded[0], declared))
            if target.adapter.damage.disk and declared in recorded[0].all:
                history = recorded[0].all[declared]
                facts.early.extend(unsynced(history, history.lineage(recorded[0].names[declared])))
        for plan in _before_recovery(options, facts.cuts):
            found, untried = recovery_cuts(target, plan, facts.cuts[plan], stop)
            facts.recovery.update(found)
            facts.notes.extend(filter(None, [untried]))
        for note in facts.notes:
            ui.log(note)
        self._cuts = facts.cuts | facts.recovery
        if options.plan is not None and options.plan not in self._cuts:
            why = "in a run there is no such instant, or what a power cut leaves is the same"
            raise UsageError(f"--plan {options.plan}: {'; '.join([why, *facts.notes])}")
        return facts

    def executor(self, target: Target, options: StateOptions, ui: Ui, stop: Stop) -> WithCuts:
        """Return the executor of the trials."""
        made = WithCuts(target, ui, stop, jobs=options.jobs, live=options.live, settle=options.settle)
        made.cuts = self._cuts
        return made

    def plans(self, options: StateOptions, facts: Facts) -> Sequence[Plan]:
        """Return the plans that the options ask for."""
        if options.plan is not None:
            control = _control(options.plan)
            return [control] * (control != options.plan) + [options.plan] * (options.iterations or _REPLAYS)
        places = _PLACES_OF[options.profile]
        plans = [
            state_plan(declared, damage)
            for declared, content in facts.contents.items()
            for damage in (*PLACES, *content_damages(content, places), *_some(facts.moments[declared], places))
        ]
        for declared, content in facts.contents.items():
            few = [
                damage
                for damage in (*PLACES, *WHOLE, "truncate=1")
                if damage in PLACES or (isinstance(content, bytes) and damaged(content, damage) is not None)
            ]
            plans += [state_plan(declared, damage, living=True) for damage in _some(few, places)]
            besides = _some(few, _BESIDES_OF[options.profile] if facts.boxes else 0)
            plans += [state_plan(declared, damage, beside=True) for damage in besides]
        for some in (facts.cuts, facts.recovery):
            for model in CUTS:
                plans += _some([plan for plan in some if f":cut={model}." in str(plan)], places)
        if options.iterations and options.iterations < len(plans):
            plans = random.Random(options.seed).sample(plans, options.iterations)  # noqa: S311 - it draws cases
        # What is there without any damage is no effect of one.
        alone = [state_plan(declared, NONE) for declared in facts.contents]
        return list(dict.fromkeys([*alone, *map(_control, plans), *plans]))

    def cases(self, target: Target, options: StateOptions, facts: Facts) -> Iterator[Case]:
        """Yield the case of each plan."""
        return (case_of(plan, target.adapter.shortest_wall) for plan in self.plans(options, facts))

    def wanted(self, options: StateOptions, facts: Facts) -> int:
        """Return the number of trials."""
        return len(self.plans(options, facts))

    def finish(self, made: Made[StateOptions, Trial], ui: Ui) -> None:
        """Repeat an example of each finding."""
        if made.options.plan is None:
            self.try_again(made, ui)
        super().finish(made, ui)

    def findings(self, made: Made[StateOptions, Trial]) -> list[Finding]:
        """Return what was left, and each kind of damage that the target's log does not tell of."""
        alone = [str(trial.case.plan) for trial in made.trials if trial.case.plan == _control(trial.case.plan)]
        found = [
            msgspec.structs.replace(one, detail="; ".join(filter(None, [one.detail, _ALONE])))
            if any(ending.plan in alone for ending in one.endings) and one.outcome in FAILING
            else one
            for one in super().findings(made)
        ]
        return [*found, *mistold(self.name, made)]

    def criteria(self, options: StateOptions) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            *(zero(outcome) for outcome in ("leaked", "silent", "wedged", "false-status", "unknown")),
            reached(),
            *TELLING,
            stated("different damages", lambda made: len({str(trial.case.plan) for trial in made.trials})),
        ]

    def details(self, made: Made[StateOptions, Trial]) -> dict[str, Any]:
        """Return the outcomes by damage, and what was not tried, and why."""
        rows = clusters(made.trials, lambda trial: damage_of(trial.case.plan))
        counts = {name: dict(Counter(trial.outcome for trial in some)) for name, some in rows.items()}
        return super().details(made) | {"endings": counts, "points": {"notes": made.facts.notes}}


def _control(plan: Plan) -> Plan:
    """Return what is the same as `plan` without its damage."""
    declared, _, damage = plan.argument.rpartition(":")
    return state_plan(declared, control_of(damage), living=plan.flags == ("living",), beside="beside" in plan.flags)


def _before_recovery(options: StateOptions, cuts: Mapping[Plan, Cut]) -> list[Plan]:
    """Return the power cuts after which power fails again, while the recovery runs."""
    if options.plan is not None:
        first = first_cut(options.plan.argument.rpartition(":")[2])
        return [plan for plan in cuts if plan.argument.rpartition(":")[2] == first]
    most = _RECOVERIES_OF[options.profile]
    lost = [plan for plan in cuts if plan != _control(plan)]
    return [one for model in CUTS for one in _some([plan for plan in lost if f":cut={model}." in str(plan)], most)]


def _some(damages: Sequence[_T], most: int) -> list[_T]:
    """Return at most `most` of them, evenly from the first to the last."""
    count = min(most, len(damages))
    return [damages[at * (len(damages) - 1) // max(1, count - 1)] for at in range(count)]
