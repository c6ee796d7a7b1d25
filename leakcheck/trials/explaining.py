"""Explains what a fault plan leaves: calls around the fault, the life of what is left, the stack at the fault."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from injectors import injector_for
from leakcheck.errors import TargetError
from leakcheck.stack import walk
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials.calls import Call, Event, Fired, calls_of
from leakcheck.trials.case import Case, honest
from leakcheck.trials.crash_points import record
from leakcheck.trials.explanation import Explanation, Frame, Step
from leakcheck.trials.lives import lives
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session
from leakcheck.trials.spans import Spans, spans_of
from leakcheck.trials.tracing import Tracing
from leakcheck.trials.trial import run_trial

__all__ = ["Explainer", "walked"]

_LAST = 12
# Of both ends of the arena's own range of box numbers.
_NUMBER = 98


class Explainer:
    """Explains plans of one target. A run without the fault is recorded once for each submission."""

    def __init__(self, target: Target, *, settle: float, stop: Stop) -> None:
        self._target, self._settle, self._stop = target, settle, stop
        self._honest: dict[tuple[str, bool], list[Event]] = {}

    def explain(self, case: Case) -> Explanation:
        """Make a trial of `case`, recorded in whole, and return what explains its outcome; raise `TargetError`."""
        recorded = Recorder(case.plan.kind)
        trial = run_trial(self._target, case, _NUMBER, live=False, settle=self._settle, recorder=recorded)
        notes = [] if trial.fired else ["the fault did not happen in the trial that was recorded"]
        # What the next run left has not to do with the fault.
        left = [one for one in trial.left if one.stage != "next run"]
        stays = [one for one in left if one.class_ not in ("reclaimable", "bounded")]
        try:
            usual = self._record(case)
        except TargetError as error:
            usual = []
            notes.append(f"no run without the fault was recorded: {error}")
        at, last, following = _around(recorded.events, usual, case)
        return Explanation(
            plan=str(case.plan),
            outcome=trial.outcome,
            at=at,
            last=last,
            following=following,
            lives=lives(stays or left, recorded.events, usual, recorded.hierarchies),
            stack=recorded.stack,
            recovery=trial.recovery,
            notes=[*notes, *recorded.notes],
        )

    def _record(self, case: Case) -> list[Event]:
        recovery = injector_for(case.plan).stage == "recover"
        submission = case.submission if recovery else honest(case, self._target.adapter.shortest_wall)
        return self._events(submission, recovery=recovery)

    def spans(self, submission: Submission) -> Spans:
        """Return how long what a run of `submission` makes exists; raise `TargetError` if it cannot be recorded."""
        return spans_of(self._events(submission, recovery=False))

    def _events(self, submission: Submission, *, recovery: bool) -> list[Event]:
        key = (repr(submission), recovery)
        if key not in self._honest:
            found = record(
                self._target,
                submission,
                _NUMBER,
                recovery=recovery,
                stop=self._stop,
                settle=self._settle,
                explain=True,
            )
            self._honest[key] = found.events
        return self._honest[key]


class Recorder:
    """Records all of a trial's commands with their calls, and the stack at the fault of a stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self.events: list[Event] = []
        self.stack: list[Frame] = []
        self.notes: list[str] = []
        self.hierarchies: dict[str, str] = {}

    def collect(self, session: Session, tracing: Tracing) -> None:
        """Read what was recorded, while the arena and the reports exist."""
        self.events = calls_of(tracing.all_reports())
        self.notes += tracing.notes()
        self.hierarchies = {name: _device(path) for name, path in getattr(session.host, "cgroups", {}).items()}
        # A run that is crashed for its recovery has a stack, too.
        for log in tracing.logs(self._stage):
            for line in tracing.lines(log):
                if "stack" in line and not self.stack:
                    if (found := walked(log, line)) is None:
                        self.notes.append(
                            "the call stack could not be walked: it is too large, or its program is damaged"
                        )
                    self.stack = found or []


def _device(path: str) -> str:
    number = Path(path).stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def walked(log: int, line: Mapping[str, Any]) -> list[Frame] | None:
    """Return the functions of a stack of which `log` has the bytes, where `line` says; None if that fails."""
    if (found := walk(log, line)) is None:
        return None
    return [
        Frame(
            program=line["mappings"][mapping]["path"] if mapping is not None else "",
            address=address,
            function=function or "",
        )
        for mapping, address, function in found
    ]


def _around(
    events: Sequence[Event], honest: Sequence[Event], case: Case
) -> tuple[Step | None, list[Step], Step | None]:
    """Return the call of the fault, those before it by the same process, and the one that follows without the fault."""
    point = case.plan.argument.partition(":")[0].removesuffix("+")
    name = f"{case.plan.kind}:{point.removesuffix('*')}{'1' * point.endswith('*')}"
    fires = (at for at, one in enumerate(events) if isinstance(one, Fired) and one.stage == case.plan.kind)
    until = next(fires, len(events))
    calls = [one for one in events[:until] if isinstance(one, Call)]
    at = next((one for one in reversed(calls) if one.name == name), calls[-1] if calls else None)
    if at is None:
        return None, [], None
    of_role = [one for one in calls if (one.point.stage, one.point.role) == (at.point.stage, at.point.role)]
    before = of_role[: of_role.index(at)]
    usual = [one for one in honest if isinstance(one, Call)]
    place = next((number for number, one in enumerate(usual) if one.name == at.name), len(usual))
    role = (at.point.stage, at.point.role)
    following = next((one for one in usual[place + 1 :] if (one.point.stage, one.point.role) == role), None)
    return _step(at), [_step(one) for one in before[-_LAST:]], None if following is None else _step(following)


def _step(call: Call) -> Step:
    return Step(point=call.name, call=call.text, result=call.result)
