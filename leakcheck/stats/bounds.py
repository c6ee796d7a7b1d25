"""The statistics for discrete leaks."""

import math
import statistics
from collections.abc import Sequence


def upper_bound(bad: int, made: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper confidence bound of a rate, given `bad` bad trials among `made`.

    Exact (Clopper and Pearson, Biometrika 26, 1934); with no bad trial it is close to 3 / `made`, the rule of three.
    """
    if bad >= made:
        return 1.0
    low, high = bad / made, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(bad, made, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(bad: int, made: int, rate: float) -> float:
    """Return the probability of at most `bad` among `made` at that rate, strictly between 0 and 1."""
    total = 0.0
    for k in range(bad + 1):
        ways = math.lgamma(made + 1) - math.lgamma(k + 1) - math.lgamma(made - k + 1)
        total += math.exp(ways + k * math.log(rate) + (made - k) * math.log1p(-rate))
    return total


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """Return the value at that share of sorted values; 0 if there are none."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


def spread(sorted_values: Sequence[float]) -> dict[str, float]:
    """Return the number of sorted times, with their median, 95th percentile and maximum; empty if there are none."""
    if not sorted_values:
        return {}
    return {
        "trials": len(sorted_values),
        "median": round(statistics.median(sorted_values), 3),
        "p95": round(quantile(sorted_values, 0.95), 3),
        "max": round(sorted_values[-1], 3),
    }
