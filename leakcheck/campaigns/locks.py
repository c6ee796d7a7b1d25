"""The campaign ``locks``: is there never more than one run in a box, whatever happens to its lock and its holder?"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from injectors import Plan
from injectors.damages import content_damages, places_of
from injectors.locks import (
    ACTIONS,
    BOOT,
    FEWEST,
    LEASE,
    LINKS,
    MOST,
    WHENS,
    damage_plan,
    kill_plan,
    lock_plan,
    stop_plan,
)
from leakcheck.campaigns.campaign import Check, Made, Option, TrialOptions
from leakcheck.campaigns.criteria import at_most, reached, stated, zero
from leakcheck.campaigns.findings import clusters
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.errors import NotApplicableError, UsageError
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.executor import Ui
from leakcheck.trials.lock_files import LockFacts, record_locks
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

_CROWDS = {"quick": (2, 8), "full": (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)}
# Crash points on locks; those beside them at which the holder is killed, those at which anything else happens, and
# damages of one lock file's content, by profile.
_LOCKS_OF = {"quick": 12, "full": 10_000}
_POINTS_OF = {"quick": 4, "full": 1000}
_FEWER_OF = {"quick": 2, "full": 40}
_PLACES_OF = {"quick": 8, "full": 1000}
# Damages in all: a target with four lock files has as many as one with one.
_DAMAGES_OF = {"quick": 48, "full": 10_000}
_REPLAYS = 20

Profile = Literal["quick", "full"]


class LocksOptions(TrialOptions, frozen=True, kw_only=True):
    """What to try; a `plan` replaces it all."""

    profile: Annotated[Profile, Option("Some of each kind, or all.")] = "full"
    contenders: Annotated[int, Option("Runs that contend for one box, at most.", "N")] = MOST
    iterations: Annotated[int, Option("At most this many trials, drawn; 0: all, or 20 trials of a --plan.", "N")] = 0
    fewest = 0

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.host:
            raise UsageError("--host: runs contend, and are killed, in arenas only; omit it")
        if not FEWEST <= self.contenders <= MOST:
            raise UsageError(f"--contenders {self.contenders}: give {FEWEST} to {MOST}")
        if self.plan is not None and self.plan.kind != "lock":
            raise UsageError(f"--plan {self.plan}: no plan of a lock, lock:ACTION or lock:FILE:DAMAGE,WHEN")


class Locks(TrialCampaign[LocksOptions]):
    """Lets runs contend for one box, kills and stops its holder, and damages its lock file."""

    name = "locks"
    question = "Is there never more than one run in a box, whatever happens to its lock and its holder?"
    options = LocksOptions

    def prepare(self, target: Target, options: LocksOptions, ui: Ui, stop: Stop) -> LockFacts:
        """Record the crash points of a run, and what its lock files contain."""
        if target.adapter.locks is None:
            raise NotApplicableError(
                f"not applicable: {target.name} declares no locks; "
                f"if two runs cannot have one box, say in [locks] of {target.path} how they are kept apart"
            )
        if options.plan is not None:
            return LockFacts()
        facts = record_locks(target, stop)
        ui.log(f"{len(facts.points)} crash points of a run, {len(facts.contents)} lock files")
        return facts

    def plans(self, options: LocksOptions, facts: LockFacts) -> Sequence[Plan]:
        """Return the plans that the options ask for."""
        if options.plan is not None:
            return [options.plan] * (options.iterations or _REPLAYS)
        plans = [*_plans(options, facts)]
        if options.iterations and options.iterations < len(plans):
            plans = random.Random(options.seed).sample(plans, options.iterations)  # noqa: S311 - it draws cases
        return plans

    def cases(self, target: Target, options: LocksOptions, facts: LockFacts) -> Iterator[Case]:
        """Yield the case of each plan."""
        return (case_of(plan, target.adapter.shortest_wall) for plan in self.plans(options, facts))

    def wanted(self, options: LocksOptions, facts: LockFacts) -> int:
        """Return the number of trials."""
        return len(self.plans(options, facts))

    def finish(self, made: Made[LocksOptions, Trial], ui: Ui) -> None:
        """Repeat an example of each finding."""
        if made.options.plan is None:
            self.try_again(made, ui)
        super().finish(made, ui)

    def criteria(self, options: LocksOptions) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            zero("split-brain"),
            *(zero(outcome) for outcome in ("leaked", "silent", "wedged", "false-status", "unknown")),
            reached(),
            stated("different lock scenarios", lambda made: len({str(trial.case.plan) for trial in made.trials})),
            stated("contenders", lambda made: sum(len(one.attempts) for one in _histories(made))),
            stated("contenders admitted", lambda made: _count(made, "admitted")),
            stated("contenders refused", lambda made: _count(made, "refused")),
            _in_time,
        ]

    def details(self, made: Made[LocksOptions, Trial]) -> dict[str, Any]:
        """Return the outcomes by what was done."""
        rows = clusters(made.trials, _name)
        counts = {name: dict(Counter(trial.outcome for trial in some)) for name, some in rows.items()}
        return super().details(made) | {"endings": counts}


def _plans(options: LocksOptions, facts: LockFacts) -> Iterator[Plan]:
    """Yield every plan; those of contenders that wait only if the target has such a launch."""
    queues = facts.queues
    full = options.profile == "full"
    crowds = sorted({min(count, options.contenders) for count in _CROWDS[options.profile]})
    ways = (False, True) if queues else (False,)
    yield from (lock_plan(f"contend={count}", waiting=waits) for count in crowds for waits in ways)
    if queues:
        late = (count for count in crowds if 2 * count <= max(options.contenders, 4))
        yield from (lock_plan(f"late={count}", waiting=waits) for count in late for waits in ways)
    yield from (lock_plan(action, waiting=waits) for action in ACTIONS for waits in ways)
    if full:
        yield lock_plan(LEASE)
    if facts.disk:
        yield lock_plan(BOOT)
    locks = _LOCKS_OF[options.profile]
    fewer = facts.chosen(locks, _FEWER_OF[options.profile])
    for point in facts.chosen(locks, _POINTS_OF[options.profile]):
        yield kill_plan(point.point, "before")
        if point not in fewer:
            continue
        if point.after and point.point.stage == "launch":
            yield stop_plan(point.point)
        if point.after:
            yield kill_plan(point.point, "after")
        if queues and full and point.phase not in ("setup", ""):
            yield kill_plan(point.point, "before", waiting=True)
    for point in facts.of_recovery(locks, _FEWER_OF[options.profile]):
        yield kill_plan(point.point, "before")
    damages = [*_damages(options, facts)]
    count = min(len(damages), _DAMAGES_OF[options.profile])
    yield from (damages[at * (len(damages) - 1) // max(1, count - 1)] for at in range(count))


def _damages(options: LocksOptions, facts: LockFacts) -> Iterator[Plan]:
    for file, content in facts.contents.items():
        for when in WHENS:
            if when == "free" and file not in facts.lasting:
                continue
            damages = [*content_damages(content, 12)]
            most = _PLACES_OF[options.profile] if when == "stale" else 4
            step = max(1, len(damages) // most)
            links = LINKS if isinstance(content, bytes) else ()
            yield from (damage_plan(file, damage, when) for damage in (*places_of(content), *links, *damages[::step]))


def _histories(made: Made[LocksOptions, Trial]) -> Iterator[Any]:
    return (trial.history for trial in made.trials if trial.history is not None)


def _count(made: Made[LocksOptions, Trial], what: str) -> int:
    return sum(getattr(attempt, what) for one in _histories(made) for attempt in one.attempts)


def _in_time(made: Made[LocksOptions, Trial]) -> Iterator[Any]:
    """Require that the box of a killed holder is free again in time."""
    locks = made.target.adapter.locks
    took = [one.recovered_ms for one in _histories(made) if one.recovered_ms is not None]
    limit = locks.within * 1000 if locks else None
    if took:
        yield from at_most("slowest recovery of a stale lock, ms", lambda _: round(max(took)), limit, "leaked")(made)


def _name(trial: Trial) -> str:
    plan = trial.case.plan
    what = plan.argument.rpartition(":")[2] if plan.flags and plan.flags[0] in WHENS else plan.argument
    return what.partition("=")[0]
