"""Traces timed kills that found something back to a crash point: a kill there shows the same in every run."""

import bisect
import itertools
import signal
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import msgspec

from injectors import Plan, injector_for
from injectors.crash import SENT, When, crash_plan
from injectors.timed import Timed
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.findings import Exact, clusters, ending_of
from leakcheck.campaigns.same import groups
from leakcheck.errors import StoppedError, TargetError
from leakcheck.trials.case import case_of
from leakcheck.trials.crash_points import Recorded, record_twice
from leakcheck.trials.executor import Ui
from leakcheck.trials.outcome import FAILING, worst
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import NEXT
from leakcheck.trials.trial import Trial

_TIMED = "forced"
# Kills that are tried for one ending of a finding, in each schedule, and for a whole finding.
_NEAR = 20
_MOST = 60
# How often a kill that shows it is tried again.
_AGAIN = 2
_PAYLOAD_LIVES = ("setup", "execution")


class _Instant(msgspec.Struct, frozen=True):
    """An instant of a run, `ms` milliseconds after its start, and whether the payload has just been executed there."""

    ms: float
    recorded: Recorded
    when: When
    executes: bool


class Pinpoint:
    """Looks for crash points near timed kills; `exact` has what was found."""

    def __init__(self, made: Made[Any, Trial], run_ms: float, ui: Ui, stop: Stop) -> None:
        self.exact: Exact = {}
        self._made, self._run_ms, self._ui, self._stop = made, run_ms, ui, stop
        self._instants: dict[bool, list[_Instant]] = {}
        self._left = 0

    def search(self) -> None:
        """Look for a crash point for each timed ending of each finding that no run without a fault shows."""
        harmless = [one for one in self._made.trials if one.left and injector_for(one.case.plan).harmless]
        try:
            for what, alike in groups(self._made.trials):
                timed = [one for one in alike if one.fired and one.case.plan.kind == _TIMED]
                failing = worst(outcome for one in alike for outcome in one.outcomes) in FAILING
                if failing and timed and not any(injector_for(one.case.plan).harmless for one in alike):
                    self._finding(what, timed, harmless)
        except (TargetError, StoppedError) as error:
            # What was found before stays.
            self._ui.log(f"no kill is traced back to a crash point: {error}")

    def _finding(self, what: tuple[Hashable, ...], timed: Sequence[Trial], harmless: Sequence[Trial]) -> None:
        self._left = _MOST
        self._ui.log(f"tracing a finding of {len(timed)} timed kills back to a crash point, in {_MOST} trials at most")
        known: list[tuple[_Instant, bool]] = []
        for ending, alike in sorted(clusters(timed, ending_of).items(), key=lambda item: -len(item[1])):
            if self._stop() or self._left <= 0:
                return
            example = _middle(alike)
            near = self._near(example)
            instants = [*known, *((one, quiesced) for quiesced in (True, False) for one in near)]
            plans = {_plan(example, instant, quiesced): (instant, quiesced) for instant, quiesced in instants}
            exact = self._first(what, iter(plans), [*harmless, *timed])
            self.exact[what, ending] = exact
            if exact is not None:
                known.append(plans[exact])

    def _near(self, trial: Trial) -> list[_Instant]:
        """Return the instants near that of the kill, the nearest first."""
        kill = Timed.of(trial.case.plan)
        sleeping = "sleeping" in kill.plan.flags
        if sleeping not in self._instants:
            self._instants[sleeping] = self._recorded(sleeping)
        instants = self._instants[sleeping]
        at = kill.after_ms
        if kill.payload:
            at += next((one.ms for one in instants if one.executes), 0)
        elif not sleeping:
            # The traced run takes longer.
            at *= instants[-1].ms / self._run_ms
        start = max(0, bisect.bisect_right([one.ms for one in instants], at) - 1)
        return [instants[number] for number in itertools.islice(_outward(start, len(instants)), _NEAR)]

    def _recorded(self, sleeping: bool) -> list[_Instant]:
        """Return the instants that every launch has, in order; with `sleeping`, those while the payload lives."""
        target = self._made.target
        submission = msgspec.structs.replace(SLEEPING, wall=target.adapter.shortest_wall) if sleeping else NEXT
        recorded = record_twice(target, submission, recovery=False, stop=self._stop)
        found = []
        for one in recorded.points:
            instants: list[tuple[When, str]] = [("before", one.phase), ("after", one.after)]
            for when, phase in instants:
                if phase in _PAYLOAD_LIVES or (phase and not sleeping):
                    executes = (when, one.phase, phase) == ("after", "setup", "execution")
                    found.append(_Instant(one.ms, one, when, executes))
        found = [one for one in found if one.recorded.point.stage == "launch"]
        if not found:
            raise TargetError(f"{target.name} has no crash point in its launch")
        return found

    def _first(self, what: tuple[Hashable, ...], plans: Iterator[Plan], others: Sequence[Trial]) -> Plan | None:
        """Return the first plan of which each trial shows `what`, as `others` do."""
        wall = self._made.target.adapter.shortest_wall
        shown: list[Plan] = []
        missed = False

        def next_plans() -> Iterator[Plan]:
            while not (shown or missed) and self._left > 0 and (plan := next(plans, None)) is not None:
                self._left -= 1
                yield plan

        while True:
            for trial in self._made.executor.run(lambda: (case_of(plan, wall) for plan in next_plans())):
                # A payload that sleeps until its wall limit because its point does not come: once is enough.
                missed |= not trial.fired
                if _shows(what, trial, others):
                    shown.append(trial.case.plan)
            if not shown:
                return None
            plan = shown.pop(0)
            again = list(self._made.executor.run(lambda: itertools.repeat(case_of(plan, wall), _AGAIN)))  # noqa: B023
            if len(again) == _AGAIN and all(_shows(what, trial, others) for trial in again):
                return plan


def _middle(alike: Sequence[Trial]) -> Trial:
    """Return the kill in the middle of the run, of those that came once the payload ran if there are any."""
    after = [one for one in alike if Timed.of(one.case.plan).payload] or alike
    return sorted(after, key=lambda one: Timed.of(one.case.plan).after_ms)[len(after) // 2]


def _plan(trial: Trial, instant: _Instant, quiesced: bool) -> Plan:
    kill = Timed.of(trial.case.plan)
    ending = "sleeping" if "sleeping" in kill.plan.flags else "normal"
    sent = next(name for name in SENT if signal.Signals[name] == kill.number)
    at = instant.recorded
    return crash_plan(
        at.point, instant.when, quiesced=quiesced, notified=at.notified, victim=kill.who, ending=ending, sent=sent
    )


def _outward(start: int, count: int) -> Iterator[int]:
    """Yield numbers from 0 to `count`, from `start` to both sides in growing steps (1, 2, 3, 5, 8 …)."""
    yield start
    step, following = 1, 2
    while step < count:
        yield from (at for at in (start - step, start + step) if 0 <= at < count)
        step, following = following, step + following


def _shows(what: tuple[Hashable, ...], trial: Trial, others: Sequence[Trial]) -> bool:
    """Return whether `trial` shows `what`, in a place that one of `others` shares."""
    if not trial.fired:
        return False
    for found, alike in groups([*others, trial]):
        plans = {one.case.plan for one in alike}
        # The last part of what is found is the name of a place, for which there may be several.
        if found[:-1] == what[:-1] and trial.case.plan in plans and len(plans) > 1:
            return True
    return False
