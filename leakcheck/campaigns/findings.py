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

# A cgroup's path exists in up to a dozen hierarchies, each with a label.
_LABELS = 16
# A process that stays keeps these, so they are parts of its leak.
_KEPT_BY_PROCESS = {"cgroup", "fd", "lock", "mount", "namespace", "net"}
_WORST_FIRST = ("damaged", "respawning", "growing", "orphaned", "held", "dying", "reclaimable", "bounded")
_FIRST_OF_CLASS = ("process", "mount", "file", "cgroup")
# Numbers, and what mktemp and tempfile draw: "tmp" and letters, or lower and upper case in one word of six or more.
_VARYING = re.compile(r"\b(?:\w*\d\w*|tmp\w{6,}|(?=\w*[a-z][A-Z])\w{6,})\b")
_T = TypeVar("_T")


def shape(text: str) -> str:
    """Return a message without its numbers, so that messages of several trials compare equal."""
    return re.sub(r"\w*\d\w*", "N", text)[:120]


def fixed(text: str) -> str:
    """Return a place or message without pids, other numbers and random names: the same in every campaign."""
    return _VARYING.sub("N", text)[:120]


def clusters(items: Iterable[_T], key: Callable[[_T], Hashable]) -> dict[Any, list[_T]]:
    """Group items by key."""
    groups: dict[Any, list[_T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def finding_id(*what: object) -> str:
    """Return the id of a finding; `what` must not contain what varies between campaigns, such as counts and labels.

    The target's name is not in it: two versions of a target may have an adapter each.
    """
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


def replay_line(campaign: str, target: Target, *words: object) -> str:
    """Return the command line that runs `campaign` on `target` with these `words`."""
    named = target.name if any(target.path == known.path for known in builtin()) else target.path.absolute()
    return shlex.join(["leakcheck", campaign, "--target", str(named), *map(str, words)])


def residue(lists: Sequence[Sequence[Remnant]]) -> list[Residue]:
    """Merge the lists, one per trial, by kind, class and stage; the worst first."""
    found = [(number, one) for number, left in enumerate(lists) for one in left]
    groups = clusters(found, lambda item: _residue_key(item[1]))
    summed = []
    for (_, _, kind, class_, by, stage), alike in sorted(groups.items()):
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


def _residue_key(one: Remnant) -> tuple[int, int, str, str, str, str]:
    severity = _WORST_FIRST.index(one.class_) if one.class_ in _WORST_FIRST else 0
    kind = _FIRST_OF_CLASS.index(one.kind) if one.kind in _FIRST_OF_CLASS else len(_FIRST_OF_CLASS)
    return severity, kind, one.kind, one.class_, one.by, one.stage


def _leaks_of(trial: Trial) -> tuple[tuple[str, str, bool], ...]:
    """Return kind, stage, and whether it is damage, of the independent leaks of a trial."""
    kinds = {(one.kind, one.stage, one.class_ == "damaged") for one in trial.left}
    processes = {stage for kind, stage, _ in kinds if kind == "process"}

    def part(kind: str, stage: str, damage: bool) -> bool:
        return kind in _KEPT_BY_PROCESS and stage in processes and not damage

    return tuple(sorted(one for one in kinds if not part(*one)))


def trial_findings(campaign: str, made: Made[Any, Trial]) -> list[Finding]:
    """Group isolated trials of similar plans with the same result: damage first, then the worst, then the most."""

    def key(trial: Trial) -> Hashable:
        # If something stays, that is why the next submission fails, with one message or another.
        stays = trial.left and trial.outcome in ("leaked", "silent", "wedged")
        detail = "" if stays else fixed(trial.detail)
        return *_ending(trial), trial.outcome, _leaks_of(trial), detail

    findings = []
    for what, alike in clusters([trial for trial in made.trials if trial.outcome != "clean"], key).items():
        first = alike[0]
        plan = str(first.case.plan)
        tried = [trial for trial in made.trials if _ending(trial) == _ending(first)]
        # An effect at one instant also occurs at instants near it.
        words = ["--plan", plan, "--iterations", "20" if "@" in plan else "1", *replay_words(made.options)]
        findings.append(
            Finding(
                id=finding_id(*what),
                ending=first.case.plan.kind,
                plan=plan,
                outcome=first.outcome,
                leaks=residue([trial.left for trial in alike]),
                trials=len(alike),
                tried=len(tried),
                replay=replay_line(campaign, made.target, *words),
                chance=_chance(alike, tried),
                detail=first.detail,
            )
        )

    def order(finding: Finding) -> tuple[bool, int, int]:
        damaging = any(left.class_ == "damaged" for left in finding.leaks)
        return not damaging, -OUTCOMES.index(finding.outcome), -finding.trials

    return sorted(findings, key=order)


def _ending(trial: Trial) -> tuple[str, str]:
    """Return how a trial's run ended, without the instant."""
    return trial.case.plan.kind, trial.case.plan.argument.partition("@")[0]


def _chance(alike: Sequence[Trial], tried: Sequence[Trial]) -> str:
    """Return that a replay of a timed kill is a matter of chance, with how often it came; empty for other plans."""
    plan = alike[0].case.plan
    if "@" not in str(plan):
        return ""
    plans = {str(trial.case.plan) for trial in tried}
    who = plan.argument.partition("@")[0]
    where = "trials at this instant" if len(plans) == 1 else f"kills of this kind ({who}) at different instants"
    return f"a timed kill, so a replay shows it by chance only; it came in {len(alike)} of {len(tried)} {where}"


def replay_words(options: TrialOptions) -> list[str]:
    """Return the words of a replay line for the `options` of isolated trials, other than plan and count."""
    settled = options.settle != type(options)().settle
    return ["--host"] * options.host + ["--settle", f"{options.settle:g}"] * settled
