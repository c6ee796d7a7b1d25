"""The campaign ``exhaust``: does a target fail honestly when the machine lacks something, and work again afterwards?"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from injectors import Plan
from injectors.exhaustion import MOMENTS, RESOURCES, exhaustion_plan
from leakcheck.campaigns.campaign import Check, Made, Option, TrialOptions
from leakcheck.campaigns.criteria import stated, zero
from leakcheck.campaigns.findings import clusters, worst_first
from leakcheck.campaigns.grace import GRACE, is_hit, row, status_of, ungraceful
from leakcheck.campaigns.result import Finding
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.errors import UsageError
from leakcheck.stats.latency import LatencyProbe
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.isolated import Isolated
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial
from leakcheck.trials.usual_words import usual_words

__all__ = ["Exhaust", "ExhaustOptions"]

_REPLAYS = 1

Profile = Literal["quick", "full"]


def _each(word: str, values: Sequence[object]) -> list[str]:
    return [f"{word}{value}" for value in values]


# How much is left, by resource: small limits, since each failing allocation is at another place.
_LEVELS: dict[Profile, dict[str, list[str]]] = {
    "quick": {
        "disk": [*_each("full@", ["0", "4K"]), *_each("inodes@", [0, 1])],
        "fd": _each("limit=", [3, 5, 8, 12]),
        "pids": _each("limit=", [0, 1, 2]),
        "memory": [*_each("full@", ["0", "512K"]), "pressure=95%"],
        "cpu": ["saturate@high", "quota=20%"],
    },
    "full": {
        "disk": [
            *_each("full@", ["0", "4K", "8K", "16K", "64K", "1M"]),
            *_each("inodes@", [0, 1, 2, 3, 4, 6, 8]),
        ],
        "fd": _each("limit=", [*range(3, 25), 28, 32, 48]),
        "pids": _each("limit=", [*range(9), 12, 16]),
        "memory": [
            *_each("full@", ["0", "16K", "64K", "128K", "256K", "512K", "1M", "2M", "4M", "8M"]),
            *_each("pressure=", ["90%", "97%", "100%"]),
        ],
        "cpu": ["saturate", "saturate@high", "quota=50%", "quota=20%", "quota=10%"],
    },
}


class ExhaustOptions(TrialOptions, frozen=True, kw_only=True):
    """What to exhaust; a `plan` replaces it all."""

    profile: Annotated[Profile, Option("A few levels of each resource, or many.")] = "full"
    iterations: Annotated[int, Option("At most this many levels, drawn; 0: all, or 1 trial of a --plan.", "N")] = 0
    under: Annotated[bool, Option("Recover from a full disk before anything is freed.")] = False
    fewest = 0

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.host:
            raise UsageError("--host: resources are exhausted in arenas only, since others need the host's; omit it")
        if self.under and self.plan is not None:
            raise UsageError("--under --plan: a plan has the flag under, as in disk:full@0,under; omit --under")
        if self.plan is not None and self.plan.kind not in RESOURCES:
            raise UsageError(f"--plan {self.plan}: no plan of an exhausted resource: {', '.join(RESOURCES)}")


class _Watched(Isolated):
    """Makes the trials while a process outside of all arenas measures how late it wakes up."""

    latency: LatencyProbe

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[Trial]:
        """Yield each trial once it is made."""
        with LatencyProbe() as probe:
            yield from super().run(cases)
        self.latency = probe


class Exhaust(TrialCampaign[ExhaustOptions]):
    """Exhausts a resource of each trial's arena, at one of three moments, and releases it before the recovery."""

    name = "exhaust"
    question = "Does a target fail honestly when the machine lacks something, and work again afterwards?"
    options = ExhaustOptions

    def executor(self, target: Target, options: ExhaustOptions, ui: Ui, stop: Stop) -> Executor[Trial]:
        """Return the executor of the trials."""
        return _Watched(target, ui, stop, jobs=options.jobs, live=False, settle=options.settle)

    def prepare(self, target: Target, options: ExhaustOptions, ui: Ui, stop: Stop) -> frozenset[str]:
        """Return the words for a lack that the target says in each run."""
        del options
        if words := usual_words(target, stop):
            ui.log(f"no words for a lack, since each run says them: {', '.join(sorted(words))}")
        return words

    def plans(self, options: ExhaustOptions) -> Sequence[Plan]:
        """Return the plans that the options ask for."""
        if options.plan is not None:
            return [options.plan] * (options.iterations or _REPLAYS)
        levels = _LEVELS[options.profile]
        plans = [
            exhaustion_plan(resource, how, moment, under=options.under and resource == "disk")
            for resource, ways in levels.items()
            for moment in MOMENTS
            for how in ways
        ]
        if options.iterations and options.iterations < len(plans):
            plans = random.Random(options.seed).sample(plans, options.iterations)  # noqa: S311 - it draws cases
        return plans

    def cases(self, target: Target, options: ExhaustOptions, facts: Any) -> Iterator[Case]:
        """Yield the case of each plan."""
        del facts
        return (case_of(plan, target.adapter.shortest_wall) for plan in self.plans(options))

    def wanted(self, options: ExhaustOptions, facts: Any) -> int:
        """Return the number of trials."""
        del facts
        return len(self.plans(options))

    def finish(self, made: Made[ExhaustOptions, Trial], ui: Ui) -> None:
        """Repeat an example of each finding."""
        latency = made.executor.latency
        if made.options.plan is None:
            self.try_again(made, ui)
            made.executor.latency = latency
        super().finish(made, ui)

    def criteria(self, options: ExhaustOptions) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            *(zero(outcome) for outcome in ("leaked", "silent", "wedged", "false-status", "unknown")),
            *GRACE,
            stated("trials that ran against their limit", lambda made: sum(map(is_hit, made.trials))),
            stated("different limits", lambda made: len({str(trial.case.plan) for trial in made.trials})),
        ]

    def findings(self, made: Made[ExhaustOptions, Trial]) -> list[Finding]:
        """Return what was left, and each way in which a target fails without grace."""
        return sorted([*super().findings(made), *ungraceful(self.name, made)], key=worst_first)

    def details(self, made: Made[ExhaustOptions, Trial]) -> dict[str, Any]:
        """Return the outcomes by resource and moment, what was hit, and how the machine fared."""
        rows = clusters(made.trials, row)
        probe = getattr(made.executor, "latency", None)
        pressures = [trial.exhausted.pressure_us for trial in made.trials if trial.exhausted is not None]
        waited = [one for one in pressures if one is not None]
        return super().details(made) | {
            "endings": {name: dict(Counter(trial.outcome for trial in some)) for name, some in rows.items()},
            "exhaustion": {
                "host_latency_ms": probe and probe.latency,
                "pressure_ms": {"most": max(waited) / 1000, "sum": sum(waited) / 1000} if waited else None,
                "hit": {
                    name: [trial.case.plan.argument for trial in some if is_hit(trial)] for name, some in rows.items()
                },
                "statuses": dict(Counter(status_of(trial) for trial in made.trials if is_hit(trial))),
            },
        }
