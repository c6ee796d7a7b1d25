"""Findings: trials with the same result, with an id, examples, and the command that reproduces it."""

import hashlib
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from leakcheck.campaigns.campaign import Made, TrialOptions
from leakcheck.campaigns.result import Finding, Residue
from leakcheck.targets import Target, builtin
from leakcheck.trials.aftermath import Remnant
from leakcheck.trials.outcome import OUTCOMES
from leakcheck.trials.trial import Trial

_LABELS = 8
_T = TypeVar("_T")


def shape(text: str) -> str:
    """Return a message without its numbers, so that messages of several trials compare equal."""
    return re.sub(r"\w*\d\w*", "N", text)[:120]


def clusters(items: Iterable[_T], key: Callable[[_T], Hashable]) -> dict[Any, list[_T]]:
    """Group items by key."""
    groups: dict[Any, list[_T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def finding_id(target: Target, *what: object) -> str:
    """Return the id of a finding; `what` must not contain what varies between campaigns, such as counts and labels."""
    return hashlib.sha256(repr((target.name, what)).encode()).hexdigest()[:8]


def replay_line(campaign: str, target: Target, *words: object) -> str:
    """Return the command line that runs `campaign` on `target` with these `words`."""
    named = target.name if any(target.path == known.path for known in builtin()) else target.path.absolute()
    return shlex.join(["leakcheck", campaign, "--target", str(named), *map(str, words)])


def residue(lists: Sequence[Sequence[Remnant]]) -> list[Residue]:
    """Merge the lists, one per trial, by kind, class and stage; damage first."""
    found = [(number, one) for number, left in enumerate(lists) for one in left]
    groups = clusters(found, lambda item: _residue_key(item[1]))
    summed = []
    for (_, kind, class_, by, stage), alike in sorted(groups.items()):
        labels: dict[str, str] = {}
        for _, one in alike:
            labels.setdefault(shape(one.label), one.label)
        summed.append(
            Residue(
                kind=kind,
                class_=class_,
                by=by,
                stage=stage,
                labels=list(labels.values())[:_LABELS],
                count=len(alike),
                trials=len({number for number, _ in alike}),
            )
        )
    return summed


def _residue_key(one: Remnant) -> tuple[bool, str, str, str, str]:
    return one.class_ != "damaged", one.kind, one.class_, one.by, one.stage


def trial_findings(campaign: str, made: Made[Any, Trial]) -> list[Finding]:
    """Group isolated trials of similar plans with the same result: damage first, then the worst, then the most."""

    def key(trial: Trial) -> Hashable:
        plan = trial.case.plan
        kinds = tuple(sorted({(one.kind, one.class_, one.by, one.stage) for one in trial.left}))
        return plan.kind, plan.argument.partition("@")[0], trial.outcome, kinds, shape(trial.detail)

    findings = []
    for what, alike in clusters([trial for trial in made.trials if trial.outcome != "clean"], key).items():
        first = alike[0]
        plan = str(first.case.plan)
        # An effect at one instant also occurs at instants near it.
        words = ["--plan", plan, "--iterations", "20" if "@" in plan else "1", *replay_words(made.options)]
        findings.append(
            Finding(
                id=finding_id(made.target, what),
                ending=first.case.plan.kind,
                plan=plan,
                outcome=first.outcome,
                leaks=residue([trial.left for trial in alike]),
                trials=len(alike),
                replay=replay_line(campaign, made.target, *words),
                detail=first.detail,
            )
        )

    def order(finding: Finding) -> tuple[bool, int, int]:
        damaging = any(left.class_ == "damaged" for left in finding.leaks)
        return not damaging, -OUTCOMES.index(finding.outcome), -finding.trials

    return sorted(findings, key=order)


def replay_words(options: TrialOptions) -> list[str]:
    """Return the words of a replay line for the `options` of isolated trials, other than plan and count."""
    settled = options.settle != type(options)().settle
    return ["--host"] * options.host + ["--settle", f"{options.settle:g}"] * settled
