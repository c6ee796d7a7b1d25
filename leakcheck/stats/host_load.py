"""Processor use by other programs: a busier machine is not a degradation of the target."""

import bisect
import os
import time
from collections.abc import Sequence

import msgspec
import psutil

from leakcheck.stats.degradation import Change, Sample

# Increase, as a share of all processors, from which other programs may have caused a slowdown.
_SHARE = 0.05
_MOST = 20_000


class HostLoad:
    """Samples of the processor time used by everything, and by the driver; in seconds."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float, float]] = []

    def sample(self) -> None:
        """Take a sample, from /proc/stat (proc(5)); time stolen by a hypervisor counts as used by others."""
        times = psutil.cpu_times()
        used = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        self._samples.append((time.monotonic(), used, time.process_time()))
        if len(self._samples) > _MOST:
            del self._samples[1::2]

    def discount(self, change: Change, samples: Sequence[Sample]) -> Change:
        """Return `change`, without a verdict if it failed and others used more later than earlier.

        `samples` are ordered by their ends; `ended` is on the monotonic clock.
        """
        third = len(samples) // 3
        if change.passed is not False or third < 1:
            return change
        early, late = self._others(samples[: third + 1]), self._others(samples[-third - 1 :])
        if late - early <= _SHARE * (os.cpu_count() or 1):
            return change
        why = f"inconclusive: other programs used {early:.2f} processors early and {late:.2f} late"
        return msgspec.structs.replace(change, passed=None, why=why)

    def _others(self, samples: Sequence[Sample]) -> float:
        """Return how many processors others used on average while these ended; the first only marks the start."""
        times = [at for at, _, _ in self._samples]
        since, until = (bisect.bisect_left(times, sample.ended) for sample in (samples[0], samples[-1]))
        first, last = (self._samples[min(at, len(times) - 1)] for at in (since, until))
        took = last[0] - first[0]
        if took <= 0:
            return 0.0
        targets = sum(sample.cpu for sample in samples[1:])
        return (last[1] - first[1] - (last[2] - first[2]) - targets) / took
