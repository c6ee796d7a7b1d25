"""The later fate of a trial's residue: after the target's recovery, after the next run, and after repetition."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath

from injectors import Checked, injector_for
from leakcheck.errors import TargetError
from leakcheck.report import Command, Leak, Report
from leakcheck.trials.case import Case
from leakcheck.trials.contest import run_contest
from leakcheck.trials.exhausted import lift
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.remnant import Remnant, program_of, runs
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.similarity import count_similar, place_of
from leakcheck.trials.state_files import keeps_one, spreads
from leakcheck.trials.state_log import LogMark, mark_log, noted

NEXT_RUN = "next run"
"""The step of a trial that prepares and runs the next submission; looks are not in its time."""
# One record however often it repeats: a chain of short-lived processes is reported as one, whatever their number.
_FOR_GOOD = ("damaged", "respawning")


class Aftermath:
    """The fate of all residue after the recovery and after the next submission, and what these two left.

    `injector` performs the plan of `case`. Nobody recovers a run that hit a fault and `succeeded` all the same: then
    the next submission comes first.
    """

    def __init__(self, session: Session, case: Case, injector: Checked, first: Report, *, succeeded: bool) -> None:
        self.left: list[Remnant] = []
        self.recovery: list[Command] = []
        self.failures: list[str] = []
        self.state: Mapping[str, int] = {}
        """That in which the stage of a fault ended, if it is compared."""
        self.gaps = {kind: gap.reason for kind, gap in first.gaps.items()}
        self.noted: bool | None = None
        self.kept: bool | None = None
        """Whether the target's log tells of damage to its state, and a file is kept; None if there is no such place."""
        self._damaged = injector.acts_between
        self._excused = injector.acts_between or injector.contends
        self._session = session
        self._succeeded = succeeded
        self._hit = not injector.harmless
        self._compared = injector.compared and injector.stage == "recover"
        if injector.compared and not self._compared:
            self.state = session.host.end_state()
        self._case = case
        # Residue that still exists, by key; `_steady` is the part that appears regardless of how the run was killed.
        self._stay = {leak.key: leak for leak in first.leaks}
        self._steady: set[str] = set()
        # The stage that left it.
        self._stage = dict.fromkeys(self._stay, "run")
        # Residue that existed after a recovery that reported success.
        self._survived: set[str] = set()
        self._silent = False
        # Processes and paths that were left, at any time.
        self._pids: set[int] = set()
        self._paths: set[tuple[str, str]] = set()
        self._know(first.leaks)
        self._see(first)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield every outcome of the trial that concerns residue and coverage."""
        outcome_of: dict[str, Outcome] = {"reclaimable": "recovered", "bounded": "bounded"}
        yield from {outcome_of.get(one.class_, "leaked") for one in self.left}
        if self._silent:
            yield "silent"
        if self.failures:
            yield "wedged"
        if self.gaps:
            yield "unknown"

    def follow(self) -> None:
        """Recover, run the next submission, observe after each, and classify what stays."""
        early = self._succeeded and bool(self._stay)
        logged = mark_log(self._session) if self._damaged else LogMark()
        if early:
            self._survived = set(self._stay)
            with self._session.timed("next"):
                self._next()
            # A recovery that nobody calls is no excuse.
            self._silent |= bool(self._survived & self._stay.keys())
        with self._session.timed("recover"):
            if wrong := self._recover():
                self.failures.append(wrong)
            self.recovery = self._session.commands
            self.kept = keeps_one(self._session) if self._damaged else None
            recovers = bool(self._session.target.adapter.recover)
            # Otherwise nothing has run since the last look, and it left nothing to look for.
            if recovers or not self._as_before:
                report = self._observe()
                if self._compared:
                    self.state = self._session.host.end_state()
                self._part(report, "recovery" if recovers else "time")
                self._add(report.leaks, "recovery")
            if recovers and not wrong:
                self._survived = set(self._stay)
        if not (self._session.late or early):
            with self._session.timed("next"):
                self._next()
        if self._damaged:
            self.noted = noted(self._session, logged)
            with self._session.timed("other box"):
                self.failures += spreads(self._session)
        if self._stay:
            self._class()

    def _recover(self) -> str:
        """Recover, under a limit that is still in force once more after it; return what is wrong."""
        wrong = self._session.recover()
        return self._session.recover() if lift(self._session) and wrong else wrong

    def _next(self) -> None:
        came: list[Leak] = []
        try:
            with self._session.timed(NEXT_RUN):
                argv = self._session.prepare(NEXT)
            # Preparing the box again replaces its own files, which are not residue.
            self._session.host.mark(as_before=self._as_before and not self._session.prepared)
            try:
                with self._session.timed(NEXT_RUN):
                    wrong = self._session.run(argv, NEXT)
            finally:
                came = self._session.host.observe_since_mark()
        except TargetError as error:
            wrong = str(error)
        if wrong:
            self.failures.append(f"next submission: {wrong}")
        if self._session.late:
            # Residue that exists now may come from our own kill.
            return
        if before := self._stay:
            report = self._observe()
            self._part(report, "next run")
            if alive := [leak for key, leak in self._stay.items() if key in before and runs(leak)]:
                self.failures.append(f"next submission: ran beside {alive[0].label}")
        # A resource that replaced one of the run's was already reported as that one.
        places = {(leak.kind, place_of(leak)) for leak in before.values()}
        self._add((leak for leak in came if (leak.kind, place_of(leak)) not in places), "next run")

    def _observe(self) -> Report:
        report = self._session.host.observe()
        self.gaps.update({kind: gap.reason for kind, gap in report.gaps.items()})
        self._see(report)
        return report

    def _see(self, report: Report) -> None:
        """Record whether the host is as at the baseline: nothing more, and nothing less."""
        self._as_before = not (report.leaks or report.allowed or report.unattributed or report.vanished or report.gaps)

    def _part(self, report: Report, by: str) -> None:
        """Drop what is gone: it was reclaimable, unless a run removed it and its name will never be used again."""
        now = {leak.key: leak for leak in report.leaks}
        places = {(leak.kind, place_of(leak)): leak for leak in report.leaks}
        before, self._stay = self._stay, {}
        for key, leak in before.items():
            here = places.get((leak.kind, place_of(leak)))
            if key in now:
                # A damaged file that was put aside has another name now.
                self._keep(key, now[key] if self._is_kept(now[key]) else leak, key)
            elif here is not None and leak.class_ == here.class_ == "damaged":
                # It changed again.
                self._keep(key, here, here.key)
            elif here is not None and by == "next run" and not self._of_a_box(leak):
                # Residue that the next run replaces one for one: exactly one exists at any time.
                self._note(key, leak, "bounded")
            elif by == "next run" and (self._session.target.adapter.fresh or leak.class_ == "damaged"):
                self._note(key, leak, leak.class_, by)
            else:
                self._note(key, leak, "reclaimable", by)

    def _keep(self, key: str, leak: Leak, as_key: str) -> None:
        self._stay[as_key] = leak
        self._stage[as_key] = self._stage[key]
        if key in self._survived:
            self._survived.add(as_key)

    def _is_kept(self, leak: Leak) -> bool:
        """Return whether it is a state or lock file that was damaged on purpose, where the target keeps such."""
        named = leak.kind == "file" or leak.evidence.get("resource", {}).get("class") == "posix-shm"
        return self._excused and named and self._session.target.keeps(place_of(leak), self._session.box)

    def _of_a_box(self, leak: Leak) -> bool:
        """Return whether it has a name that is never used again."""
        session = self._session
        return session.target.adapter.fresh and session.target.names_box(place_of(leak), session.box)

    def _know(self, leaks: Iterable[Leak]) -> None:
        for leak in leaks:
            resource = leak.evidence.get("resource", {})
            if isinstance(pid := resource.get("pid"), int) and leak.kind == "process":
                self._pids.add(pid)
            # What changes below a directory that was there before is no part of that directory's change.
            if isinstance(path := resource.get("path"), str) and leak.class_ != "damaged":
                self._paths.add((leak.kind, path))

    def _note(self, key: str, leak: Leak, class_: str, by: str = "") -> None:
        resource = leak.evidence.get("resource", {})
        if leak.kind == "process":
            place = program_of(leak, (self._case.submission, NEXT))
            inner = resource.get("ppid") in self._pids
        else:
            place = place_of(leak)
            inner = class_ != "damaged" and any((leak.kind, str(up)) in self._paths for up in PurePath(place).parents)
        self.left.append(Remnant.of(leak, class_, by, self._stage[key], place=place, inner=inner))
        if key in self._survived and class_ not in ("reclaimable", "bounded"):
            self._silent = True

    def _add(self, leaks: Iterable[Leak], stage: str) -> None:
        """Add what was not observed before, unless something similar existed at the baseline."""
        came = {leak.key: leak for leak in leaks if leak.key not in self._stay and not leak.replaces}
        self._stay |= came
        self._know(came.values())
        self._stage |= dict.fromkeys(came, stage)
        self._steady |= came.keys()

    def _class(self) -> None:
        """Repeat the trial, in another box if boxes are fresh: residue whose number increases is growing.

        Residue whose number does not increase is bounded; damage to existing resources never is.
        """
        after = before = self._observe().leaks
        if not self._session.late:
            self._session.renew()
            injector = injector_for(self._case.plan)
            with contextlib.suppress(TargetError), self._session.traced(injector):
                if injector.contends:
                    run_contest(self._session, injector, self._session.prepare(self._case.submission))
                else:
                    self._session.prepare_under(injector, self._case.submission)
            # As before: what a killed run started goes on, and a run beside it leaves what neither would alone.
            self._session.host.observe()
            wrong = self._recover() or self._session.again()
            if wrong and not (self.failures or self._session.late):
                self.failures.append(f"after the same once more: {wrong}")
            after = self._observe().leaks
        for key, leak in self._stay.items():
            more = count_similar(leak, after) > count_similar(leak, before)
            # A second run killed at another point need not leave what the first left.
            chance = self._session.late or (self._hit and key not in self._steady)
            chance &= not self._is_kept(leak)
            class_ = "growing" if more else leak.class_ if chance else "bounded"
            self._note(key, leak, leak.class_ if leak.class_ in _FOR_GOOD else class_)
