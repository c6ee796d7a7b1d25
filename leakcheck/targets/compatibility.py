"""Submissions for a target: only those that it can run and whose status it can report."""

from collections.abc import Sequence

from leakcheck.errors import UsageError
from leakcheck.submissions import DEFAULT_LANGUAGES, Mix, Spec, found_languages, sample
from leakcheck.targets.target import Target


def incompatibility(target: Target, wanted: Spec) -> str:
    """Return why `target` cannot report the status of `wanted`, empty if it can."""
    adapter = target.adapter
    if why := adapter.languages_not.get(wanted.language):
        return f"{target.name} does not run {wanted.language}: {why}"
    if why := adapter.behaviours_not.get(wanted.behaviour):
        return f"{target.name} does not report {wanted.behaviour} correctly: {why}"
    if wanted.about.expect not in adapter.reports:
        return f"{target.name} cannot report {wanted.about.expect}; it reports {', '.join(adapter.reports)}"
    if wanted.limits.wall < adapter.shortest_wall:
        return f"{target.name} does not accept a wall limit below {adapter.shortest_wall:g} s"
    # The limits that end it first.
    ends = {name: getattr(wanted.limits, name) for name in wanted.about.ends_by}
    first = [name for name, limit in ends.items() if limit == min(ends.values())]
    if not set(first) <= set(adapter.time_limits):
        return f"{target.name} does not report TLE for {' and '.join(first)}; give a longer limit of it"
    return ""


def sample_for(
    target: Target, mix: Mix, languages: Sequence[str] | None, n: int, seed: int, *, hostile: bool = False
) -> list[Spec]:
    """Return `n` submissions like `sample`, restricted to what `target` can run and report.

    Raises:
        UsageError: as `sample`, and if one of `languages` cannot run in it.
    """
    adapter = target.adapter
    if languages is None:
        names = found_languages(lambda name: name in DEFAULT_LANGUAGES and name not in adapter.languages_not)
    else:
        names = list(languages)
        if unable := [name for name in names if name in adapter.languages_not]:
            raise UsageError(f"{target.name} does not run {unable[0]}: {adapter.languages_not[unable[0]]}")
    return sample(
        mix,
        names,
        n,
        seed,
        reports=adapter.reports,
        time_limits=adapter.time_limits,
        shortest_wall=adapter.shortest_wall,
        hostile=hostile,
        without=tuple(adapter.behaviours_not),
    )
