"""The points that a sweep visited, in order: which of them show what. It is what a crash map draws."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from injectors import Plan
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.findings import id_of
from leakcheck.campaigns.same import groups
from leakcheck.trials.crash_points import Recorded
from leakcheck.trials.outcome import FAILING, OUTCOMES, Outcome, worst
from leakcheck.trials.trial import Trial

__all__ = ["MOST", "Shown", "Visited", "tried_of", "visited"]

MOST = 4_000
"""Points that a result has at most: those that show a failure first, then the first ones."""
_SHOWN = 4


class Shown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plan at a point that came to more than clean: its outcome, and the id of the finding that it shows."""

    plan: str
    outcome: Outcome
    finding: str = ""


class Visited(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A point, with the `stage` in its name.

    `phase` is its phase, `after` that of the instant after it, if it is another one. `outcome` has the worst outcome of
    the instants that were tried: ``before`` and ``after`` the call, or ``fault``. `shows` are at most four plans for
    each of them, the worst first. It is `unsteady` if one of two recorded runs had it.
    """

    point: str
    phase: str
    after: str = ""
    outcome: dict[str, Outcome] = {}
    shows: list[Shown] = []
    unsteady: bool = False


def tried_of(plan: Plan) -> tuple[str, str]:
    """Return the point of the first fault of a plan, and its instant: ``before``, ``after`` or ``fault``."""
    point, _, how = plan.argument.partition(":")
    name = point.removesuffix("+")
    name = f"{name.removesuffix('*')}1" if name.endswith("*") else name
    when, _, sent = how.partition(":")
    kills = when in ("before", "after") and sent.startswith("SIG")
    return f"{plan.kind}:{name}", when if kills else "fault"


def visited(made: Made[Any, Trial], phase: Callable[[Recorded], str]) -> dict[str, Any]:
    """Return the fields ``map`` and ``map_left_out`` of a result's points, as JSON has them; none of a single plan."""
    if made.options.plan is not None:
        return {}
    shown = _shown(made)
    outcomes: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for trial in made.trials:
        point, when = tried_of(trial.case.plan)
        outcomes[point][when] = worst([trial.outcome, outcomes[point].get(when, "clean")])
    known = [
        Visited(
            point=(name := f"{one.point.stage}:{one.point}"),
            phase=phase(one),
            after=one.after if one.after != phase(one) and "after" in outcomes[name] else "",
            outcome=dict(sorted(outcomes[name].items(), reverse=True)),
            shows=shown.get(name, []),
            unsteady=number >= len(made.facts.points),
        )
        for number, one in enumerate([*made.facts.points, *made.facts.unsteady])
    ]
    kept = _kept(known)
    return {"map": msgspec.to_builtins(kept), "map_left_out": len(known) - len(kept)}


def _shown(made: Made[Any, Trial]) -> dict[str, list[Shown]]:
    """Return what the plans at each point show."""
    of: dict[str, list[Shown]] = defaultdict(list)
    seen: Counter[tuple[str, str]] = Counter()
    for shown in sorted(set(_all_shown(made)), key=_worst_first):
        point, when = tried_of(Plan.read(shown.plan))
        seen[point, when] += 1
        if seen[point, when] <= _SHOWN:
            of[point].append(shown)
    return of


def _all_shown(made: Made[Any, Trial]) -> Iterator[Shown]:
    for what, alike in groups(made.trials):
        finding = id_of(made.target, what)
        for trial in alike:
            yield Shown(plan=str(trial.case.plan), outcome=trial.outcome, finding=finding)


def _worst_first(one: Shown) -> tuple[int, str, str]:
    return -OUTCOMES.index(one.outcome), one.plan, one.finding


def _kept(known: Sequence[Visited]) -> list[Visited]:
    if len(known) <= MOST:
        return [*known]
    failing = {number for number, one in enumerate(known) if not {*FAILING}.isdisjoint(one.outcome.values())}
    first = (number for number in range(len(known)) if number not in failing)
    kept = [*sorted(failing), *first][:MOST]
    return [known[number] for number in sorted(kept)]
