"""What leakcheck itself uses while a campaign runs: its memory and descriptors must not grow with the trials."""

import time

import psutil

_FEWEST = 30
_MOST = 20_000
_MIB = 1 << 20


class OwnUse:
    """Samples of this process: resident memory and descriptors (proc_pid_statm(5), proc_pid_fd(5))."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._samples: list[tuple[float, int, int]] = []

    def sample(self) -> None:
        """Take a sample."""
        used = self._process.memory_info().rss, self._process.num_fds()
        self._samples.append((time.monotonic(), *used))
        if len(self._samples) > _MOST:
            del self._samples[1::2]

    @property
    def growth_mib(self) -> float:
        """MiB by which the least memory of the last third is above that of the second; 0 if there are few samples.

        The first third fills caches.
        """
        return round(max(0, self._change(1)) / _MIB, 1)

    @property
    def more_fds(self) -> int:
        """Descriptors by which the fewest of the last third are above the fewest of the second."""
        return max(0, self._change(2))

    def _change(self, field: int) -> int:
        values = [int(one[field]) for one in self._samples]
        third = len(values) // 3
        if len(values) < _FEWEST:
            return 0
        return min(values[2 * third :]) - min(values[third : 2 * third])
