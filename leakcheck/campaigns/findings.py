"""Findings: trials with the same result, with an id, examples, and the commands that reproduce it."""

import hashlib
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from injectors import Plan, injector_for
from injectors.timed import Timed
from leakcheck.campaigns.campaign import Made, TrialOptions
from leakcheck.campaigns.result import Example, Finding, Occurrence, Residue
from leakcheck.campaigns.same import groups
from leakcheck.targets import Target, is_builtin
from leakcheck.trials.outcome import OUTCOMES
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.similarity import fixed
from leakcheck.trials.trial import Trial

_PLACES = 16
_WORST_FIRST = ("damaged", "respawning", "growing", "orphaned", "held", "dying", "reclaimable", "bounded")
_FIRST_OF_CLASS = ("process", "mount", "file", "cgroup")
_T = TypeVar("_T")

Exact = dict[tuple[tuple[Hashable, ...], str], Plan | None]
"""By what a finding shows, and by ending: a kill that shows it in every run; None if none was found."""


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
    named = target.name if is_builtin(target) else target.path.absolute()
    return shlex.join(["leakcheck", campaign, "--target", str(named), *map(str, words)])


def residue(lists: Sequence[Sequence[Remnant]], endings: Sequence[str] = ()) -> list[Residue]:
    """Merge the lists, one per trial, by kind, class and stage; the worst first. `endings` are those of the trials."""
    found = [(number, one) for number, left in enumerate(lists) for one in left]
    summed = []
    for (_, _, kind, class_, by, stage), alike in sorted(clusters(found, lambda item: _residue_key(item[1])).items()):
        examples = _examples(alike, endings)
        trials = {number for number, _ in alike}
        summed.append(
            Residue(
                kind=kind,
                class_=class_,
                by=by,
                stage=stage,
                labels=[one.label for one in examples],
                count=len({(number, one.place) for number, one in alike}) if kind == "cgroup" else len(alike),
                trials=len(trials),
                endings=_counted(trials, endings),
                examples=examples,
            )
        )
    return summed


def _examples(alike: Sequence[tuple[int, Remnant]], endings: Sequence[str]) -> list[Example]:
    """Return one item of each shape, of at most so many places: a cgroup has one item in each hierarchy."""
    shapes = clusters(alike, lambda item: (item[1].kind == "cgroup" and fixed(item[1].place), fixed(item[1].label)))
    places = clusters(shapes, lambda shape: shape[0] or shape)
    return [
        Example(
            label=some[0][1].label,
            endings=_counted({number for number, _ in some}, endings),
            evidence=msgspec.json.decode(some[0][1].evidence),
        )
        for place in list(places.values())[:_PLACES]
        for some in map(shapes.__getitem__, place)
    ]


def _counted(trials: Iterable[int], endings: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(endings[number] for number in trials).items())) if endings else {}


def _residue_key(one: Remnant) -> tuple[int, int, str, str, str, str]:
    severity = _WORST_FIRST.index(one.class_) if one.class_ in _WORST_FIRST else 0
    kind = _FIRST_OF_CLASS.index(one.kind) if one.kind in _FIRST_OF_CLASS else len(_FIRST_OF_CLASS)
    return severity, kind, one.kind, one.class_, one.by, one.stage


def trial_findings(campaign: str, made: Made[Any, Trial], exact: Exact | None = None) -> list[Finding]:
    """Return what isolated trials have in common, however they ended: damage first, then the worst, then the most.

    The replay lines of timed kills are those of `exact`, where it has some.
    """
    tried: dict[str, list[Trial]] = clusters(made.trials, ending_of)
    findings = []
    for what, alike in groups(made.trials):
        by_ending = clusters(alike, ending_of)
        seen = [_occurrence(campaign, made, ending, some, tried[ending]) for ending, some in by_ending.items()]
        seen = [_pinpointed(one, made, what, exact or {}) for one in seen]
        # The surest replay first.
        seen.sort(key=lambda one: (bool(one.chance), -one.trials / one.tried, -one.trials))
        best, example = seen[0], _worst(by_ending[seen[0].ending])
        worst = _worst(alike)
        findings.append(
            Finding(
                id=id_of(made.target, what),
                ending=example.case.plan.kind,
                plan=best.plan,
                outcome=worst.outcome,
                leaks=residue([trial.left for trial in alike], [ending_of(trial) for trial in alike]),
                trials=len(alike),
                tried=sum(one.tried for one in seen),
                replay=best.replay,
                chance=best.chance,
                detail=worst.detail,
                endings=seen,
                recovery=worst.recovery,
            )
        )

    return sorted(findings, key=worst_first)


def id_of(target: Target, what: Iterable[Hashable]) -> str:
    """Return the id of the finding of isolated trials that show `what`, as `groups` has it."""
    return finding_id(*(_of_any(target.name, one) for one in what))


def _of_any(target: str, what: Hashable) -> Hashable:
    """Return a part of what a finding shows without the target's name: two versions of it have the same finding."""
    if not isinstance(what, str):
        return what
    what = what.replace(f"leakcheck-{target}-", "leakcheck-")
    return re.sub(rf"(?<![\w-]){re.escape(target)}(?![\w-])", "", what)


def worst_first(finding: Finding) -> tuple[bool, int, int]:
    """Return the key that sorts damage first, then the worst outcome, then the most."""
    damaging = any(left.class_ == "damaged" for left in finding.leaks)
    return not damaging, -OUTCOMES.index(finding.outcome), -finding.trials


def _occurrence(
    campaign: str, made: Made[Any, Trial], ending: str, alike: Sequence[Trial], tried: Sequence[Trial]
) -> Occurrence:
    worst = _worst(alike)
    plan = str(worst.case.plan)
    # An effect at one instant also occurs at instants near it.
    words = [
        "--plan",
        plan,
        "--iterations",
        "20" if worst.case.plan.kind in Timed.kinds else "1",
        *replay_words(made.options),
    ]
    return Occurrence(
        ending=ending,
        outcome=worst.outcome,
        trials=len(alike),
        tried=len(tried),
        plan=plan,
        replay=replay_line(campaign, made.target, *words),
        chance=_chance(alike, tried),
    )


def _pinpointed(one: Occurrence, made: Made[Any, Trial], what: tuple[Hashable, ...], exact: Exact) -> Occurrence:
    if (what, one.ending) not in exact:
        return one
    if (plan := exact[what, one.ending]) is None:
        return replace(one, chance=f"{one.chance}; no kill at a crash point near it showed it every time")
    words = ["--plan", str(plan), "--iterations", "1", *replay_words(made.options)]
    return replace(one, plan=str(plan), replay=replay_line("crash", made.target, *words), chance="")


def _worst(alike: Sequence[Trial]) -> Trial:
    """Return the first of the trials with the worst outcome."""
    return max(alike, key=lambda trial: OUTCOMES.index(trial.outcome))


def ending_of(trial: Trial) -> str:
    """Return how a trial's run ended, without the instant and what the payload did."""
    plan = trial.case.plan
    who = plan.argument.partition("@")[0]
    signals = [flag for flag in plan.flags if flag != "sleeping"]
    return ",".join([f"{plan.kind}:{who}" if who else plan.kind, *signals])


def _chance(alike: Sequence[Trial], tried: Sequence[Trial]) -> str:
    """Return that a replay is a matter of chance, with how often it came; empty if it came always."""
    plan = alike[0].case.plan
    if plan.kind not in Timed.kinds:
        # An ending may have several plans, as an exhausted resource has levels.
        alike, tried = ([trial for trial in some if trial.case.plan == plan] for some in (alike, tried))
        some = len(alike) < len(tried) and not injector_for(plan).harmless
        return f"flaky: it came in {len(alike)} of {len(tried)} trials of this plan" if some else ""
    plans = {str(trial.case.plan) for trial in tried}
    who = plan.argument.partition("@")[0]
    where = "trials at this instant" if len(plans) == 1 else f"kills of this kind ({who}) at different instants"
    return f"a timed kill, so a replay shows it by chance only; it came in {len(alike)} of {len(tried)} {where}"


def without_residue(
    campaign: str,
    made: Made[Any, Trial],
    what: str,
    trials: Iterable[Trial],
    ending: Callable[[Trial], str],
    how: str | Callable[[Trial], str],
) -> Iterator[Finding]:
    """Yield a finding for each `ending` of trials that fail in one way, `what`, whatever they left; `how` says it."""
    for name, same in clusters(trials, ending).items():
        plan = str(same[0].case.plan)
        words = ["--plan", plan, "--iterations", 1, *replay_words(made.options)]
        yield Finding(
            id=finding_id(what, name),
            ending=name,
            outcome=max((trial.outcome for trial in same), key=OUTCOMES.index),
            leaks=[],
            trials=len(same),
            replay=replay_line(campaign, made.target, *words),
            detail=how if isinstance(how, str) else how(same[0]),
            plan=plan,
        )


def replay_words(options: TrialOptions) -> list[str]:
    """Return the words of a replay line for the `options` of isolated trials, other than plan and count."""
    settled = options.settle != type(options)().settle
    return ["--host"] * options.host + ["--settle", f"{options.settle:g}"] * settled
