"""The common part of campaigns whose trials run in an arena each, or on the live host."""

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from leakcheck.campaigns.campaign import Campaign, Made, TrialOptions
from leakcheck.campaigns.findings import clusters, residue, trial_findings
from leakcheck.campaigns.result import Finding
from leakcheck.campaigns.same import groups
from leakcheck.stats.bounds import spread
from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.isolated import Isolated
from leakcheck.trials.outcome import OUTCOMES
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

AGAIN = 2
"""How often an example of a finding is tried once more: one whose replays disagree says so."""

_Options = TypeVar("_Options", bound=TrialOptions)


class TrialCampaign(Campaign[_Options, Trial]):
    """A campaign of isolated trials; subclasses add the cases and the criteria."""

    def executor(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Executor[Trial]:
        """Return the executor of the trials."""
        return Isolated(
            target,
            ui,
            stop,
            jobs=options.jobs,
            live=options.live,
            settle=options.settle,
            enough=options.enough,
        )

    def rest(self, made: Made[_Options, Trial], cases: Iterator[Case]) -> Iterator[Case]:
        """Yield the `cases` without those of the trials that were made before."""
        done = Counter(trial.case for trial in made.trials)
        for case in cases:
            if done[case] > 0:
                done[case] -= 1
            else:
                yield case

    def wanted_in_all(self, made: Made[_Options, Trial]) -> int | None:
        """Return the number of trials with those of before, of which the plan may have others now."""
        cases = self.rest(made, self.cases(made.target, made.options, made.facts))
        return len(made.trials) + sum(1 for _ in cases)

    def enough(self, made: Made[_Options, Trial]) -> bool:
        """Return whether as many trials as the options ask for have the same finding."""
        enough = made.options.enough
        return bool(enough) and any(len(alike) >= enough for _, alike in groups(made.trials))

    def try_again(self, made: Made[_Options, Trial], ui: Ui, count: int = AGAIN) -> None:
        """Try an example of each finding `count` times more."""
        examples = [max(alike, key=lambda trial: OUTCOMES.index(trial.outcome)) for _, alike in groups(made.trials)]
        again = [one.case for one in examples if one.outcome not in ("bounded", "recovered") for _ in range(count)]
        if again:
            ui.log(f"trying each of {len(again) // count} findings {count} times more")
        made.trials.extend(made.executor.run(lambda: iter(again)))
        made.wanted = None if made.wanted is None else made.wanted + len(again)

    def finish(self, made: Made[_Options, Trial], ui: Ui) -> None:
        """Record what was not fully observed."""
        del ui
        self.so_far(made)

    def so_far(self, made: Made[_Options, Trial]) -> Made[_Options, Trial]:
        """Record what was not fully observed so far."""
        made.coverage = {kind: reason for trial in made.trials for kind, reason in trial.gaps.items()}
        return made

    def findings(self, made: Made[_Options, Trial]) -> list[Finding]:
        """Return the trials grouped by result, with what explains them."""
        found = trial_findings(self.name, made)
        return [msgspec.structs.replace(one, explanation=made.explanations.get(one.plan)) for one in found]

    def details(self, made: Made[_Options, Trial]) -> dict[str, Any]:
        """Return outcomes by kind of plan, and times."""
        trials = made.trials
        by_kind = clusters(trials, lambda trial: trial.case.plan.kind)
        times = clusters(((step, ms) for trial in trials for step, ms in trial.timing_ms.items()), lambda item: item[0])
        return {
            "endings": {kind: dict(Counter(trial.outcome for trial in alike)) for kind, alike in by_kind.items()},
            "untied": residue([trial.untied for trial in trials]),
            "timing_ms": {
                step: round(statistics.median(ms for _, ms in found), 3) for step, found in sorted(times.items())
            },
            "settle_ms": spread(sorted(trial.settled_ms for trial in trials if trial.settled_ms is not None)),
        }
