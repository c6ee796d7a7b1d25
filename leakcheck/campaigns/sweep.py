"""The common part of campaigns that visit the points of a target's runs, which a traced run without a fault tells."""

import abc
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from zlib import crc32

import msgspec
from rich.text import Text

from injectors import Plan
from leakcheck.campaigns import explained
from leakcheck.campaigns.campaign import Check, Made
from leakcheck.campaigns.criteria import reached, stated, zero
from leakcheck.campaigns.explain import explain
from leakcheck.campaigns.further import extend, later
from leakcheck.campaigns.near import log_near_points
from leakcheck.campaigns.result import Result
from leakcheck.campaigns.sweep_options import PHASES, RUN, SweepOptions
from leakcheck.campaigns.trial_campaign import AGAIN, TrialCampaign
from leakcheck.campaigns.visited import visited
from leakcheck.errors import TargetError, UsageError
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.crash_points import Points, Recorded, record_twice
from leakcheck.trials.executor import Ui
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

# Trials of one plan, unless fewer are asked for.
_REPLAYS = 20
# Plans at points that one of two runs had.
_MOST_UNSTEADY = 48

_Options = TypeVar("_Options", bound=SweepOptions)


class Sweep(TrialCampaign[_Options]):
    """Visits the points of a run, and those of the recovery of a crashed run."""

    points_name = "crash points"
    without = "has no crash point: it changes nothing outside before its payload runs"
    """What is said of a target without points."""

    @abc.abstractmethod
    def select(self, options: _Options, points: Sequence[Recorded]) -> Iterator[Plan]:
        """Yield the plans of a whole sweep of these points."""

    def record(
        self, target: Target, options: _Options, stop: Stop, *, every: bool = False, watched: bool = False
    ) -> Points:
        """Record the points, twice: which of them are the same in every run."""
        runs = [(self.submission(target, options), False)]
        runs += [(SLEEPING, True)] if target.adapter.recover else []
        settle = options.settle
        recorded = [
            record_twice(target, what, recovery=recovery, stop=stop, settle=settle, every=every, watched=watched)
            for what, recovery in runs
        ]
        return Points(
            [one for each in recorded for one in each.points],
            [one for each in recorded for one in each.unsteady],
            [note for each in recorded for note in each.notes],
        )

    def submission(self, target: Target, options: _Options) -> Submission:
        """Return the submission whose run has the points."""
        ending = Plan(options.ending, "signal" if options.ending == "crash" else "")
        return case_of(ending, target.adapter.shortest_wall).submission

    def prepare(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Points:
        """Record the points, and check that there are some to visit."""
        if options.plan is not None:
            return Points([], [], [])
        facts = self.record(target, options, stop)
        ui.log(f"{len(facts.points)} {self.points_name}, {len(facts.unsteady)} more in one of two runs only")
        if not facts.points:
            raise TargetError(f"{target.name} {self.without}")
        if not [*self.select(options, facts.points)]:
            phases = {phase for one in facts.points for phase in (one.phase, one.after)}
            there = ", ".join(phase for phase in PHASES if phase in phases)
            raise UsageError(
                f"{target.name}: none of its {len(facts.points)} {self.points_name} is in this selection; "
                f"its phases with --ending {options.ending}: {there or 'none'}; omit --phase"
            )
        return facts

    def kept(self, made: Made[_Options, Trial]) -> bytes:
        """Return the points."""
        return msgspec.json.encode(made.facts)

    def go_on(self, made: Made[_Options, Trial], kept: bytes) -> None:
        """Visit the points that were recorded first."""
        made.facts = msgspec.json.decode(kept, type=Points)
        made.wanted = self.wanted(made.options, made.facts)

    def shard(self, options: _Options, points: Sequence[Recorded]) -> list[Plan]:
        """Return the plans of this shard: by name, since each shard records its own points, which may be a few more."""
        number, shards = options.slice()
        return [plan for plan in self.select(options, points) if crc32(str(plan).encode()) % shards == number]

    def plans(self, options: _Options, points: Sequence[Recorded]) -> Iterator[Plan]:
        """Yield the plans that the options ask for."""
        if options.plan is not None:
            return itertools.repeat(options.plan, options.iterations or _REPLAYS)
        plans = self.shard(options, points)
        if options.iterations or options.within:
            # However many of them are tried, they are the first of one order.
            random.Random(options.seed).shuffle(plans)  # noqa: S311 - it draws cases
        return itertools.islice(plans, options.iterations or None)

    def cases(self, target: Target, options: _Options, facts: Points) -> Iterator[Case]:
        """Yield the case of each plan."""
        return (case_of(plan, target.adapter.shortest_wall) for plan in self.plans(options, facts.points))

    def wanted(self, options: _Options, facts: Points) -> int:
        """Return the number of trials."""
        return sum(1 for _ in self.plans(options, facts.points))

    def enough(self, made: Made[_Options, Trial]) -> bool:
        """Return whether no further trial starts."""
        within = made.options.within
        return (within > 0 and made.executor.took >= within) or super().enough(made)

    def finish(self, made: Made[_Options, Trial], ui: Ui) -> None:
        """Repeat an example of each finding twice: a finding whose replays disagree says so."""
        if made.options.plan is None:
            self._visit_unsteady(made, ui)
            # In a random name without digits and capitals, a point has another name in that one run.
            self._try_missed(made)
            self.try_again(made, ui, self.again_of(made.options))
            # A plan that fired in one of its trials was tested. What another one left counts all the same.
            fired = {trial.case.plan for trial in made.trials if trial.fired}
            made.trials[:] = [
                trial for trial in made.trials if trial.outcome != "not-reached" or trial.case.plan not in fired
            ]
        elif not any(trial.fired for trial in made.trials):
            if any(trial.fired for trial in self._try_missed(made)):
                made.trials[:] = [trial for trial in made.trials if trial.outcome != "not-reached"]
            else:
                log_near_points(made, made.options.plan, ui)
        super().finish(made, ui)
        if not made.trials:
            made.coverage["points"] = f"none of the plans is in shard {made.options.shard}"
        unasked = made.options.plan is None and self.again_of(made.options) > 0
        if unasked or made.options.explain is not None:
            what = self.submission(made.target, made.options)
            explain(self.name, made, what, ui, made.executor.stop, seconds=made.options.within)

    def _visit_unsteady(self, made: Made[_Options, Trial], ui: Ui) -> None:
        """Visit points that one of two recorded runs had, each until a trial has it, too; most sweeps have none."""
        options = made.options
        if options.iterations or options.within or not self.again_of(options) or self.enough(made):
            return
        # All of them, in each shard: another one may not have seen them.
        plans = [*self.select(options, made.facts.unsteady)]
        plans = plans[:: -(-len(plans) // _MOST_UNSTEADY)] if plans else []
        # Before the campaign was cut off, some of them may have been visited.
        visited = {trial.case.plan for trial in made.trials if trial.fired}
        plans = [plan for plan in plans if plan not in visited]
        if not plans:
            return
        ui.log(f"trying {len(plans)} plans at {self.points_name} that one of two runs had")
        cases = [case_of(plan, made.target.adapter.shortest_wall) for plan in plans]
        fired = {trial.case.plan for trial in extend(made, cases) if trial.fired}
        extend(made, [later(case) for case in cases if case.plan not in fired])

    def _try_missed(self, made: Made[_Options, Trial]) -> list[Trial]:
        """Try each plan that did not fire once more, one run later: every second run may have its point."""
        missed = dict.fromkeys(later(one.case) for one in made.trials if one.outcome == "not-reached")
        return extend(made, [*missed])

    def shown(self, options: _Options, result: Result) -> Iterator[Text] | str:
        """Return the findings with their explanations in full if a plan is to be explained."""
        if options.explain is None:
            return super().shown(options, result)
        if options.format == "text":
            return explained.text(result)
        return explained.markdown(result) if options.format == "markdown" else result.to_json()

    def again_of(self, options: _Options) -> int:
        """Return how often a finding is tried once more."""
        del options
        return AGAIN

    def criteria(self, options: _Options) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            *(zero(outcome) for outcome in ("leaked", "silent", "wedged", "false-status", "unknown")),
            reached(),
            stated(f"{self.points_name} that every run has", lambda made: len(made.facts.points)),
            stated(f"{self.points_name} of one of two runs only, not visited", self._unvisited),
        ]

    def _unvisited(self, made: Made[_Options, Trial]) -> int:
        fired = {self.instant(trial.case.plan) for trial in made.trials if trial.fired}
        return sum(fired.isdisjoint(at for at, _ in self.instants(one)) for one in made.facts.unsteady)

    def instants(self, one: Recorded) -> Iterator[tuple[str, str]]:
        """Yield how plans begin that visit a point, and the phase of each."""
        yield f"{one.point.stage}:{one.point}:before", one.phase
        yield f"{one.point.stage}:{one.point}:after", one.after

    def phase_of(self, one: Recorded) -> str:
        """Return the phase in which a point is shown."""
        return one.phase

    def instant(self, plan: Plan) -> str:
        """Return how a plan begins, as `instants` has it."""
        return f"{plan.kind}:{plan.argument.rpartition(':')[0]}"

    def details(self, made: Made[_Options, Trial]) -> dict[str, Any]:
        """Return the outcomes by phase."""
        known = [*made.facts.points, *made.facts.unsteady]
        phases = {at: phase for one in known for at, phase in self.instants(one)}
        rows: dict[str, Counter[str]] = {}
        for trial in made.trials:
            plan = trial.case.plan
            rows.setdefault(phases.get(self.instant(plan), plan.kind), Counter())[trial.outcome] += 1
        # A point has several plans.
        numbers = {at: number for number, one in enumerate(known) for at, _ in self.instants(one)}
        fired = {self.instant(trial.case.plan) for trial in made.trials if trial.fired}
        plans = {*self.shard(made.options, made.facts.points)}
        # The five of a run are rows of every sweep, however many points each has.
        order = [phase for phase in PHASES if phase in rows or (phase in RUN and made.options.plan is None)]
        return super().details(made) | {
            "endings": {phase: dict(rows.get(phase, {})) for phase in [*order, *(rows.keys() - set(order))]},
            "points": {
                "seen": len(made.facts.points) + len(made.facts.unsteady),
                "hit": len({numbers.get(at, at) for at in fired}),
                "plans": len(plans),
                "tried": len(plans & {trial.case.plan for trial in made.trials}),
                "not_reached": sorted({str(trial.case.plan) for trial in made.trials if not trial.fired}),
                "notes": made.facts.notes,
                **visited(made, self.phase_of),
                **({"lives": msgspec.to_builtins(made.spans)} if made.spans is not None else {}),
            },
        }
