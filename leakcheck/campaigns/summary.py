"""What campaigns' results have in common: names, shapes of messages, spreads."""

import re
import statistics
from collections.abc import Sequence

from leakcheck.targets import Target, builtin

__all__ = ["named", "shape", "spread"]


def named(target: Target) -> str:
    """Return what `--target` takes."""
    return target.name if any(target.path == known.path for known in builtin()) else str(target.path.absolute())


def shape(text: str) -> str:
    """Return a message without its numbers, so that those of several trials are alike."""
    return re.sub(r"\w*\d\w*", "N", text)[:120]


def spread(sorted_values: Sequence[float]) -> dict[str, float]:
    """Return how many there are of sorted times, with their median, 95th percentile and maximum; empty if none."""
    if not sorted_values:
        return {}
    late = sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * 0.95))]
    return {
        "trials": len(sorted_values),
        "median": round(statistics.median(sorted_values), 3),
        "p95": round(late, 3),
        "max": round(sorted_values[-1], 3),
    }
