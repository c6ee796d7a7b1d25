"""What leakcheck itself used while a run was recorded, and how busy the machine was, as curves."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from leakcheck.reports.figures import Curves, Line

_STEPS = 120


class Sample(msgspec.Struct, frozen=True):
    """What leakcheck used `at_s` seconds after the begin of a run; `cpu_s` so far, `load` is that of the machine."""

    at_s: float
    rss_kib: int
    fds: int
    cpu_s: float
    load: float


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
