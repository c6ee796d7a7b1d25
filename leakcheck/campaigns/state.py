"""The campaign ``state``: does a target notice damage to its own state, and work on all the same?"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from injectors import Plan
from injectors.damages import NONE, PLACES, content_damages
from injectors.state import state_plan
from leakcheck.campaigns.campaign import Check, Judged, Made, Option, TrialOptions
from leakcheck.campaigns.criteria import at_most, reached, stated, zero
from leakcheck.campaigns.findings import clusters, finding_id, replay_line, replay_words
from leakcheck.campaigns.result import Finding
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.errors import NotApplicableError, UsageError
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.executor import Ui
from leakcheck.trials.outcome import FAILING, OUTCOMES
from leakcheck.trials.runner import Stop
from leakcheck.trials.state_files import record_state_files
from leakcheck.trials.trial import Trial

# Lengths, and bits, of a file that are tried, by profile.
_PLACES_OF = {"quick": 12, "full": 512}
_REPLAYS = 20
UNTOLD = "damages that the target's log does not tell of"
_ALONE = "a kill leaves it without any damage, too"

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


class State(TrialCampaign[StateOptions]):
    """Kills the supervisor while its payload runs, damages a state file, recovers, and runs the next submissions."""

    name = "state"
    question = "Does a target notice damage to its own state, and work on all the same?"
    options = StateOptions

    def prepare(self, target: Target, options: StateOptions, ui: Ui, stop: Stop) -> Mapping[str, bytes]:
        """Record what the state files contain."""
        if not target.adapter.state_files:
            raise NotApplicableError(
                f"not applicable: {target.name} declares no state file; "
                f"if it keeps one, name it in state_files of {target.path}"
            )
        if options.plan is not None:
            return {}
        contents = record_state_files(target, stop)
        for declared, content in contents.items():
            ui.log(f"state file {declared}: {len(content)} bytes")
        return contents

    def plans(self, options: StateOptions, facts: Mapping[str, bytes]) -> Sequence[Plan]:
        """Return the plans that the options ask for."""
        if options.plan is not None:
            return [options.plan] * (options.iterations or _REPLAYS)
        plans = [
            state_plan(declared, damage)
            for declared, content in facts.items()
            for damage in (*PLACES, *content_damages(content, _PLACES_OF[options.profile]))
        ]
        if options.iterations and options.iterations < len(plans):
            plans = random.Random(options.seed).sample(plans, options.iterations)  # noqa: S311 - it draws cases
        # What a kill alone leaves is no effect of a damage.
        return [state_plan(declared, NONE) for declared in facts] + plans

    def cases(self, target: Target, options: StateOptions, facts: Mapping[str, bytes]) -> Iterator[Case]:
        """Yield the case of each plan."""
        return (case_of(plan, target.adapter.shortest_wall) for plan in self.plans(options, facts))

    def wanted(self, options: StateOptions, facts: Mapping[str, bytes]) -> int:
        """Return the number of trials."""
        return len(self.plans(options, facts))

    def finish(self, made: Made[StateOptions, Trial], ui: Ui) -> None:
        """Repeat an example of each finding."""
        if made.options.plan is None:
            self.try_again(made, ui)
        super().finish(made, ui)

    def findings(self, made: Made[StateOptions, Trial]) -> list[Finding]:
        """Return what was left, and each kind of damage that the target's log does not tell of."""
        alone = [str(trial.case.plan) for trial in made.trials if _name(trial) == NONE]
        found = [
            msgspec.structs.replace(one, detail="; ".join(filter(None, [one.detail, _ALONE])))
            if any(ending.plan in alone for ending in one.endings) and one.outcome in FAILING
            else one
            for one in super().findings(made)
        ]
        log = made.target.adapter.damage.log
        for name, some in clusters(_unnoted(made), _name).items():
            plan = str(some[0].case.plan)
            words = ["--plan", plan, "--iterations", 1, *replay_words(made.options)]
            found.append(
                Finding(
                    id=finding_id("unnoted", name),
                    ending=name,
                    outcome=max((trial.outcome for trial in some), key=OUTCOMES.index),
                    leaks=[],
                    trials=len(some),
                    replay=replay_line(self.name, made.target, *words),
                    detail=f"not noticed: {log} has no line about it",
                    plan=plan,
                )
            )
        return found

    def criteria(self, options: StateOptions) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            *(zero(outcome) for outcome in ("leaked", "silent", "wedged", "false-status", "unknown")),
            reached(),
            _told,
            stated("different damages", lambda made: len({str(trial.case.plan) for trial in made.trials})),
        ]

    def details(self, made: Made[StateOptions, Trial]) -> dict[str, Any]:
        """Return the outcomes by damage, and which damages were not noted."""
        rows = clusters(made.trials, _name)
        counts = {name: dict(Counter(trial.outcome for trial in some)) for name, some in rows.items()}
        return super().details(made) | {"endings": counts}


def _told(made: Made[StateOptions, Trial]) -> Iterator[Judged]:
    """Require a line about each damage, if the target has a log."""
    if made.target.adapter.damage.log:
        yield from at_most(UNTOLD, lambda made: len(_unnoted(made)), 0)(made)


def _unnoted(made: Made[StateOptions, Trial]) -> list[Trial]:
    return [trial for trial in made.trials if trial.noted is False and _name(trial) != NONE]


def _name(trial: Trial) -> str:
    return trial.case.plan.argument.rpartition(":")[2].partition("=")[0]
