"""What is found out before the trials: is the isolation on, how long is a run, what does the very first one leave."""

import os
from collections.abc import Callable

from leakcheck.campaigns.likeness import count_like
from leakcheck.campaigns.place import ArenaPlace, HostPlace, Place
from leakcheck.campaigns.stages import NEXT, Stages, Stop
from leakcheck.campaigns.trial import Left
from leakcheck.errors import StoppedError, TargetError
from leakcheck.targets import Target

__all__ = ["FIRST", "bare_rate", "first_run", "isolation_gaps", "probe", "run_length"]

FIRST = "first run"
"""The stage of what a first run leaves."""

_NAMESPACES = "for n in cgroup ipc mnt net pid time user uts; do echo $n $(readlink /proc/self/ns/$n); done"


def probe(target: Target, *, host: bool, stop: Stop) -> list[str]:
    """Return what of the target's isolation is not on where trials take place; empty if all is."""
    gaps: list[str] = []
    if not target.adapter.probe.none:
        _in_a_place(target, host, lambda stages: gaps.extend(isolation_gaps(stages)), stop)
    return gaps


def isolation_gaps(stages: Stages) -> list[str]:
    """Return what of the target's isolation is not on in this place, with the probe's last words; empty if all is."""
    marker = stages.place.marker
    stages.place.write(marker, b"")
    submission = stages.target.probe(marker)
    argv = stages.prepare(submission)
    links = stages.said(["/bin/sh", "-c", _NAMESPACES])
    outside = dict(line.split(" ", 1) for line in links.splitlines())
    said = stages.said(argv, submission.wall)
    gaps = stages.target.isolation_gaps(said, outside, os.uname().version)
    return [*gaps, said[-300:].strip()] if gaps else []


def run_length(target: Target, *, host: bool, stop: Stop, runs: int = 5) -> float:
    """Return the median length of a normal run in milliseconds, the first one left out.

    Raises:
        TargetError: it does not work.
    """
    lengths: list[float] = []

    def measure(stages: Stages) -> None:
        for number in range(runs + 1):
            argv = stages.prepare(NEXT)
            before = stages.phases.get("run", 0)
            with stages.phase("run"):
                wrong = stages.run(argv, NEXT)
            if wrong:
                raise TargetError(f"{target.name}: {wrong}")
            if number:
                lengths.append(stages.phases["run"] - before)

    _in_a_place(target, host, measure, stop)
    return sorted(lengths)[len(lengths) // 2]


def first_run(target: Target, *, host: bool, stop: Stop, settle: float) -> list[Left]:
    """Return what the very first run in a place leaves for good, which a trial's warm-up hides from it.

    It is bounded if a second and a third run leave no more of it, growing if they do. What of the host's own files it,
    or the preparation before it, changes or removes is damaged.
    """
    left: list[Left] = []

    def look(stages: Stages) -> None:
        argv = stages.prepare(NEXT)
        stages.place.begin()
        left.extend(Left("file", "damaged", label, stage=FIRST) for label in stages.place.damaged_before())
        stages.run(argv, NEXT)
        first = stages.place.look()
        if not first.leaks:
            return
        # Making the box ready again replaces files of its own, so what counts is from the second run to the third.
        reports = []
        for _ in range(2):
            stages.renew()
            stages.again()
            reports.append(stages.place.look())
        second, third = reports
        for leak in first.leaks:
            more = count_like(leak, third.leaks) > count_like(leak, second.leaks)
            class_ = leak.class_ if leak.class_ == "damaged" else "growing" if more else "bounded"
            left.append(Left(leak.kind, class_, leak.label, stage=FIRST))

    _in_a_place(target, host, look, stop, settle)
    return left


def _in_a_place(target: Target, host: bool, work: Callable[[Stages], object], stop: Stop, settle: float = 0) -> None:
    place: Place = HostPlace(target, settle) if host else ArenaPlace(target, settle)
    with place:
        stages = Stages(target, place, stop=stop)
        work(stages)
    # `Stages.again` takes it for a run that failed.
    if stop():
        raise StoppedError(f"{target.name}: interrupted before the first trial")


def bare_rate(run_ms: float, jobs: int) -> float:
    """Return runs a second of the same command without any verification."""
    return jobs * 1000 / run_ms if run_ms else 0.0
