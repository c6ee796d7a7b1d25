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
from leakcheck.errors import LateError, TargetError
from leakcheck.report import Leak, Report
from leakcheck.targets import Target

__all__ = ["Left", "Trial", "run_trial"]

# However often it is repeated; what lives on in ever new processes is told as one, however many there are of it.
_FOR_GOOD = ("damaged", "respawning")


class Left(msgspec.Struct, frozen=True):
    """One thing that a trial left in a `stage`, with the class that the later ones gave it; `by` is what removed it."""

    kind: str
    class_: str
    label: str
    by: str = ""
    stage: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one trial showed; times in milliseconds. What nothing ties to it is `untied`, and counts for nothing."""

    ending: Ending
    outcome: Outcome
    left: list[Left] = []
    wrong: bool = False
    """Whether the run got another status than it must, or none."""
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
            return Trial(ending=ending, outcome="wrong", wrong=True, detail=f"warm-up run: {wrong}")
    stages.renew()
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
            except LateError as error:
                # What is there now our own kill may have left.
                return Trial(ending=ending, outcome="wedged", wrong=True, detail=str(error))
            except TargetError as error:
                wrong = str(error)
    with stages.phase("settle"):
        first = stages.place.look()
    settled = max((gone.gone_after_ms for gone in first.transient), default=None)
    after = _Aftermath(stages, ending, first)
    if first.leaks or ending.kill is not None:
        after.follow()
    gaps = after.gaps
    outcome, detail = after.outcome(), "; ".join([*after.failures, *filter(None, [wrong])])
    if outcome == "clean" and wrong:
        outcome = "wrong"
    elif outcome == "clean" and gaps:
        outcome, detail = "unknown", "; ".join(f"{kind}: {reason}" for kind, reason in gaps.items())
    untied = [Left(leak.kind, leak.class_, leak.label) for leak in first.unattributed]
    return Trial(
        ending=ending,
        outcome=outcome,
        left=after.left,
        wrong=bool(wrong),
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
        # What left it.
        self._stage = dict.fromkeys(self._stay, "run")
        # What was there after a recovery that reported success.
        self._survived: set[str] = set()
        self._silent = False
        self._seen(first)

    def outcome(self) -> Outcome:
        """Return the trial's outcome as far as it is what was left."""
        if self.failures:
            return "wedged"
        if self._silent:
            return "silent"
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
            self._add(report.leaks, "recovery")
            if self._stages.target.adapter.recover and not wrong:
                self._survived = set(self._stay)
        if not self._stages.late:
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
        if self._stages.late:
            # What is there now our own kill may have left.
            return
        before = self._stay
        if before:
            report = self._look()
            self._part(report, "next run")
        # What one of the run's was replaced by was told as that one.
        places = {(leak.kind, place_of(leak)) for leak in before.values()}
        self._add((leak for leak in came if (leak.kind, place_of(leak)) not in places), "next run")

    def _look(self) -> Report:
        report = self._stages.place.look()
        self._seen(report)
        return report

    def _seen(self, report: Report) -> None:
        self.gaps.update({kind: gap.reason for kind, gap in report.gaps.items()})

    def _part(self, report: Report, by: str) -> None:
        """Part with what is gone: it was reclaimable, unless a run took it away of a kind that will not come again."""
        now = {leak.key: leak for leak in report.leaks}
        places = {(leak.kind, place_of(leak)): leak for leak in report.leaks}
        before, self._stay = self._stay, {}
        for key, leak in before.items():
            here = places.get((leak.kind, place_of(leak)))
            if key in now:
                self._keep(key, leak, key)
            elif here is not None and leak.class_ == here.class_ == "damaged":
                # Changed once more.
                self._keep(key, here, here.key)
            elif here is not None and by == "next run" and not self._of_a_box(leak):
                # What the next run took away and put another in the place of: one is there, whatever is run.
                self._tell(key, leak, "bounded")
            elif by == "next run" and (self._stages.target.adapter.fresh or leak.class_ == "damaged"):
                self._tell(key, leak, leak.class_, by)
            else:
                self._tell(key, leak, "reclaimable", by)

    def _keep(self, key: str, leak: Leak, as_key: str) -> None:
        self._stay[as_key] = leak
        self._stage[as_key] = self._stage[key]
        if key in self._survived:
            self._survived.add(as_key)

    def _of_a_box(self, leak: Leak) -> bool:
        """Tell whether it bears a name that is never given again."""
        stages = self._stages
        return stages.target.adapter.fresh and stages.target.names_box(place_of(leak), stages.box)

    def _tell(self, key: str, leak: Leak, class_: str, by: str = "") -> None:
        self.left.append(Left(leak.kind, class_, leak.label, by, self._stage[key]))
        if key in self._survived and class_ not in ("reclaimable", "bounded"):
            self._silent = True

    def _add(self, leaks: Iterable[Leak], stage: str) -> None:
        """Add what was not seen before, unless something like it was there at the baseline."""
        new = [leak for leak in leaks if leak.key not in self._stay]
        replaced = self._stages.place.replaced(new)
        came = {leak.key: leak for leak in new if leak.key not in replaced}
        self._stay |= came
        self._stage |= dict.fromkeys(came, stage)
        self._steady |= came.keys()

    def _class(self) -> None:
        """Repeat it all, in another box where boxes are fresh: what there is more of then is growing.

        Bounded is what there is not more of; damage to what was there before never is.
        """
        before = self._look().leaks
        after = before
        if not self._stages.late:
            self._stages.renew()
            self._stages.end(self._ending)
            self._stages.recover()
            self._stages.again()
            after = self._look().leaks
        for key, leak in self._stay.items():
            more = count_like(leak, after) > count_like(leak, before)
            # Killed elsewhere in the run, the second one need not leave what the first left.
            chance = self._stages.late or (self._ending.kill is not None and key not in self._steady)
            if leak.class_ in _FOR_GOOD:
                class_ = leak.class_
            else:
                class_ = "growing" if more else leak.class_ if chance else "bounded"
            self._tell(key, leak, class_)
