"""One trial: a place, a warm-up run, a baseline, a run under an ending, and what it left at each stage after it."""

import contextlib
import time
from collections.abc import Iterable

import msgspec

from leakcheck.campaigns.ending import Ending
from leakcheck.campaigns.likeness import count_like, place_of
from leakcheck.campaigns.place import ArenaPlace, HostPlace, Place
from leakcheck.campaigns.result import Outcome
from leakcheck.campaigns.stages import NEXT, Stages
from leakcheck.report import Leak, Report
from leakcheck.supervise import TargetError
from leakcheck.targets import Target

__all__ = ["Left", "Trial", "run_trial"]


class Left(msgspec.Struct, frozen=True):
    """One thing that a trial left, with the class that the later stages gave it; `by` is what took it away."""

    kind: str
    class_: str
    label: str
    by: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one trial showed; times in milliseconds. What nothing ties to it is `untied`, and counts for nothing."""

    ending: Ending
    outcome: Outcome
    left: list[Left] = []
    detail: str = ""
    phases_ms: dict[str, float] = {}
    settled_ms: float | None = None
    gaps: dict[str, str] = {}
    untied: list[Left] = []


def run_trial(target: Target, ending: Ending, number: int, *, host: bool, settle: float) -> Trial:
    """Make one trial of `target` from start to end; `settle` in seconds.

    Raises:
        TargetError: no place could be made, or the box could not be made ready in it.
    """
    began = time.monotonic()
    place: Place = HostPlace(target, settle) if host else ArenaPlace(target, settle)
    with contextlib.ExitStack() as stack:
        stack.enter_context(place)
        stages = Stages(target, place, number)
        stages.phases["up"] = (time.monotonic() - began) * 1000
        trial = _stages(stages, ending)
        down = time.monotonic()
    stages.phases["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, phases_ms=stages.phases)


def _stages(stages: Stages, ending: Ending) -> Trial:
    submission = ending.submission(stages.target.adapter.shortest_wall)
    with stages.phase("warm-up"):
        if wrong := stages.again():
            return Trial(ending=ending, outcome="wrong", detail=f"warm-up run: {wrong}")
    with stages.phase("prepare"):
        argv = stages.prepare(submission)
    with stages.phase("baseline"):
        stages.place.begin()
    wrong = ""
    with stages.phase("run"):
        if ending.kill is not None:
            stages.force(argv, ending)
        else:
            try:
                wrong = stages.run(argv, submission)
            except TargetError as error:
                wrong = str(error)
    with stages.phase("settle"):
        first = stages.place.look()
    settled = max((gone.gone_after_ms for gone in first.transient), default=None)
    after = _Aftermath(stages, ending, first)
    if first.leaks or ending.kill is not None:
        after.follow()
    gaps = after.gaps
    outcome, detail = after.outcome(), "; ".join(after.failures)
    if outcome == "clean" and wrong:
        outcome, detail = "wrong", wrong
    elif outcome == "clean" and gaps:
        outcome, detail = "unknown", "; ".join(f"{kind}: {reason}" for kind, reason in gaps.items())
    untied = [Left(leak.kind, leak.class_, leak.label) for leak in first.unattributed]
    return Trial(
        ending=ending,
        outcome=outcome,
        left=after.left,
        detail=detail,
        settled_ms=settled,
        gaps=gaps,
        untied=untied,
    )


class _Aftermath:
    """What became of all that was left, after the recovery and after the next submission, and what these left."""

    def __init__(self, stages: Stages, ending: Ending, first: Report) -> None:
        self.left: list[Left] = []
        self.failures: list[str] = []
        self.gaps: dict[str, str] = {}
        self._stages = stages
        self._ending = ending
        # What is still there, by key; `_steady` is of it what comes by itself, however the run was killed.
        self._stay = {leak.key: leak for leak in first.leaks}
        self._steady: set[str] = set()
        self._seen(first)

    def outcome(self) -> Outcome:
        """Return the trial's outcome as far as it is what was left."""
        if self.failures:
            return "wedged"
        classes = {one.class_ for one in self.left}
        if classes - {"reclaimable", "bounded"}:
            return "leaked"
        return "bounded" if "bounded" in classes else "reclaimed" if classes else "clean"

    def follow(self) -> None:
        """Recover, run the next submission, look after each, and class what stays."""
        with self._stages.phase("recover"):
            if wrong := self._stages.recover():
                self.failures.append(wrong)
            report = self._look()
            self._part(report, "recovery" if self._stages.target.adapter.recover else "time")
            self._add(report.leaks)
        with self._stages.phase("next"):
            self._next()
        if self._stay:
            self._class()

    def _next(self) -> None:
        came: list[Leak] = []
        try:
            argv = self._stages.prepare(NEXT)
            # Making the box ready again replaces files of its own, which are no residue.
            self._stages.place.mark()
            try:
                wrong = self._stages.run(argv, NEXT)
            finally:
                came = self._stages.place.look_since_mark()
        except TargetError as error:
            wrong = str(error)
        if wrong:
            self.failures.append(f"next submission: {wrong}")
        before = self._stay
        if before:
            report = self._look()
            self._part(report, "next run")
            self._mark_replaced(before, report)
        # What one of the run's was replaced by was told as that one.
        places = {(leak.kind, place_of(leak)) for leak in before.values()}
        self._add(leak for leak in came if (leak.kind, place_of(leak)) not in places)

    def _look(self) -> Report:
        report = self._stages.place.look()
        self._seen(report)
        return report

    def _seen(self, report: Report) -> None:
        self.gaps.update({kind: gap.reason for kind, gap in report.gaps.items()})

    def _part(self, report: Report, by: str) -> None:
        """Part with what is gone: it was reclaimable."""
        now = {leak.key for leak in report.leaks}
        self.left.extend(
            Left(leak.kind, "reclaimable", leak.label, by) for key, leak in self._stay.items() if key not in now
        )
        self._stay = {key: leak for key, leak in self._stay.items() if key in now}

    def _add(self, leaks: Iterable[Leak]) -> None:
        """Add what was not seen before, unless something like it was there at the baseline."""
        new = [leak for leak in leaks if leak.key not in self._stay]
        replaced = self._stages.place.replaced(new)
        came = {leak.key: leak for leak in new if leak.key not in replaced}
        self._stay |= came
        self._steady |= came.keys()

    def _mark_replaced(self, before: dict[str, Leak], report: Report) -> None:
        """What the next run took away and put another in the place of is bounded: one is there, whatever is run."""
        places = {(leak.kind, place_of(leak)) for leak in report.leaks}
        for key, leak in before.items():
            if key not in self._stay and (leak.kind, place_of(leak)) in places:
                self.left.remove(Left(leak.kind, "reclaimable", leak.label, "next run"))
                self.left.append(Left(leak.kind, "bounded", leak.label))

    def _class(self) -> None:
        """Repeat it all in the same box: what there is more of then is growing, and bounded what there is not."""
        before = self._look().leaks
        self._stages.end(self._ending)
        self._stages.recover()
        self._stages.again()
        after = self._look().leaks
        for key, leak in self._stay.items():
            more = count_like(leak, after) > count_like(leak, before)
            # Killed elsewhere in the run, the second one need not leave what the first left.
            chance = self._ending.kill is not None and key not in self._steady
            # What lives on in ever new processes is told as one, however many there are of it.
            class_ = "growing" if more else leak.class_ if chance or leak.class_ == "respawning" else "bounded"
            self.left.append(Left(leak.kind, class_, leak.label))
