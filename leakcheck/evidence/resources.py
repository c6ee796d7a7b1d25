"""What leakcheck itself used while a campaign ran, and how busy the machine was, as curves."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import psutil

from leakcheck.campaigns.recording import Recording
from leakcheck.reports.figures import Curves, Line

_STEPS = 120
# Seconds between two samples that are kept in memory, at first; and how many are kept.
_EVERY_S = 1.0
_MOST = 1000


class Sample(msgspec.Struct, frozen=True):
    """What leakcheck used `at_s` seconds after the begin of a run; `cpu_s` so far, `load` is that of the machine."""

    at_s: float
    rss_kib: int
    fds: int
    cpu_s: float
    load: float


class Sampler:
    """Takes samples of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def sample(self, at_s: float) -> Sample:
        """Return what it uses now, `at_s` seconds after the begin."""
        with self._process.oneshot():
            rss, times, fds = self._process.memory_info().rss >> 10, self._process.cpu_times(), self._process.num_fds()
        return Sample(round(at_s, 3), rss, fds, times.user + times.system, os.getloadavg()[0])


class Sampled(Recording):
    """Keeps samples of what leakcheck uses, in memory: no more than a thousand, however long it runs."""

    def __init__(self) -> None:
        self._use, self._samples = Sampler(), list[Sample]()
        self._began, self._every, self._due = time.monotonic(), _EVERY_S, 0.0

    def add(self, trial: Any, kept: Callable[[], bytes]) -> None:
        """Take a sample from time to time."""
        del trial, kept
        if (now := time.monotonic()) >= self._due:
            self._samples.append(self._use.sample(now - self._began))
            if len(self._samples) > _MOST:
                del self._samples[::2]
                self._every *= 2
            self._due = now + self._every

    def samples(self) -> Sequence[Sample]:
        """Return them, in the order of their times."""
        return self._samples


def resource_curves(samples: Sequence[Sample]) -> Iterator[Curves]:
    """Yield the curves of `samples`, in the order of their time; none of a single one."""
    if len(samples) < 2:
        return
    some = [*samples[:: max(1, len(samples) // _STEPS)]]
    yield _curve("Memory of leakcheck", "MiB", some, lambda one: one.rss_kib / 1024)
    yield _curve("Descriptors of leakcheck", "descriptors", some, lambda one: one.fds)
    # A run that went on has the processor time of another process from there on.
    used = [
        (later.at_s, (later.cpu_s - one.cpu_s) / (later.at_s - one.at_s))
        for one, later in pairwise(some)
        if later.at_s > one.at_s and later.cpu_s >= one.cpu_s
    ]
    if used:
        line = Line(name="processors", points=used)
        yield Curves(title="Processors that leakcheck used", unit="processors", lines=[line])
    yield _curve("Load average of the machine", "tasks", some, lambda one: one.load)


def _curve(title: str, unit: str, samples: Sequence[Sample], value: Callable[[Sample], float]) -> Curves:
    line = Line(name=unit, points=[(one.at_s, float(value(one))) for one in samples])
    return Curves(title=title, unit=unit, lines=[line])
