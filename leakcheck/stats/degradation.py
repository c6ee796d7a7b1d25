"""Does a long run get slower? A non-inferiority test of late against early, on noisy measurements.

"No degradation of more than 10 %" passes only when the upper confidence bound of late over early is below 1.10; it
fails when even the lower bound is above, and is inconclusive in between, or when the run was too short
(non-inferiority: Piaggio et al., JAMA 308, 2012). Submissions close in time are similar, so whole intervals of the run
are drawn, not single submissions (block bootstrap: Künsch, Annals of Statistics 17, 1989).
"""

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from leakcheck.stats.bounds import quantile

LIMIT = 1.10
"""Late over early, unless told otherwise: 1.10 is ten per cent slower."""

_NAMES = ("throughput", "p50", "p95")
_FEWEST = 100
_STRETCHES = 12
_DRAWS = 1000


class Sample(msgspec.Struct, frozen=True):
    """One submission: when it ended and how long it took, in seconds; only those of the same `group` are comparable.

    If a limit, not the target, sets the length, `timed` is false: the sample counts only for throughput. `cpu` is its
    processor time in seconds.
    """

    ended: float
    took: float
    group: str
    timed: bool = True
    cpu: float = 0


class Change(msgspec.Struct, frozen=True):
    """Late over early, above 1 if slower, with its 90 % interval: each bound holds with 95 %.

    `passed` is None if the result is inconclusive; `why` is the reason.
    """

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    passed: bool | None = None
    why: str = ""


def changes(
    samples: Sequence[Sample], seed: int = 0, limit: float = LIMIT, *, scheduled: bool = False
) -> dict[str, Change]:
    """Return how ``throughput``, ``p50`` and ``p95`` of the last third of a run compare with those of its first.

    Late over early may be `limit`. A submission's time is relative to its group's median, so that the random order of
    the mix is not a degradation. If they are `scheduled`, they come at their times, however much work each is: only
    their number counts for the throughput.
    """
    ordered = sorted(samples, key=lambda one: one.ended)
    third = len(ordered) // 3
    if third < _FEWEST:
        why = f"inconclusive: {len(ordered)} submissions are too few, give {3 * _FEWEST} or more"
        return dict.fromkeys(_NAMES, Change(why=why))
    groups: dict[str, list[float]] = defaultdict(list)
    for one in ordered:
        groups[one.group].append(one.took)
    usual = {group: max(statistics.median(took), 1e-6) for group, took in groups.items()}
    work = dict.fromkeys(usual, 1.0) if scheduled else usual
    early, late = (_stretches(part, usual, work) for part in (ordered[: third + 1], ordered[-third - 1 :]))
    generator = random.Random(seed)  # noqa: S311 - a repeatable draw, no secret
    drawn = [
        _ratios(generator.choices(early, k=len(early)), generator.choices(late, k=len(late))) for _ in range(_DRAWS)
    ]
    seen = _ratios(early, late)
    return {name: _judged(seen[name], [one[name] for one in drawn], limit) for name in _NAMES}


class _Stretch(msgspec.Struct, frozen=True):
    """Submissions that ended in sequence: total seconds, work done, sorted times."""

    seconds: float
    work: float
    times: list[float]


def _stretches(part: Sequence[Sample], usual: dict[str, float], work: dict[str, float]) -> list[_Stretch]:
    """Cut `part` into intervals; its first sample only marks the start of the first interval."""
    found = []
    size = (len(part) - 1) / _STRETCHES
    for number in range(_STRETCHES):
        begin, end = 1 + round(number * size), 1 + round((number + 1) * size)
        ended = part[begin:end]
        found.append(
            _Stretch(
                seconds=part[end - 1].ended - part[begin - 1].ended,
                work=sum(work[one.group] for one in ended),
                times=[one.took / usual[one.group] for one in ended if one.timed],
            )
        )
    return found


def _ratios(early: Sequence[_Stretch], late: Sequence[_Stretch]) -> dict[str, float]:
    def measures(part: Sequence[_Stretch]) -> tuple[float, float, float]:
        times = sorted(time for one in part for time in one.times)
        pace = sum(one.seconds for one in part) / sum(one.work for one in part)
        return pace, quantile(times, 0.5), quantile(times, 0.95)

    pairs = zip(_NAMES, measures(late), measures(early), strict=True)
    return {name: after / before if before > 0 else 1.0 for name, after, before in pairs}


def _judged(ratio: float, drawn: Sequence[float], limit: float) -> Change:
    ordered = sorted(drawn)
    low, high = quantile(ordered, 0.05), quantile(ordered, 0.95)
    passed = True if high < limit else False if low > limit else None
    why = "" if passed is not None else "inconclusive: the interval contains the limit; a longer run narrows it"
    return Change(round(ratio, 3), round(low, 3), round(high, 3), passed, why)
