"""The crash points of a target, recorded in a run without a fault."""

from typing import TYPE_CHECKING

import msgspec

from injectors.crash import Point, Stage
from leakcheck.errors import StoppedError, TargetError
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.calls import Event, calls_of
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session
from leakcheck.trials.trace_requests import crashing, explaining, notifying, recording_of
from leakcheck.trials.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Sequence

RELEASES = frozenset({"rmdir", "unlink", "umount", "kill", "rename"})
"""Operations that remove what a run made; what follows the last of them belongs to the phase ``verdict``."""
STEPS = {
    **dict.fromkeys(("umount", "rmdir", "unlink"), True),
    **dict.fromkeys(("kill", "wait", "close"), False),
}
"""The steps of a clean-up (QA-REL-001, 4), and whether it is one in any phase: it releases what is outside."""
ONLY_BEFORE = "it uses ptrace itself: seccomp reports its calls instead, and there are no kills after a call"
"""The note on a target that cannot be traced by ptrace."""
PHASE_OF = {"prepare": "setup", "finish": "cleanup", "recover": "recovery"}
"""The phase of all that is in these stages."""


class Recorded(msgspec.Struct, frozen=True):
    """A point of a run, the phase in which it is, and that of the instant after it; empty if there is none.

    It came `ms` milliseconds after the start of its command. If this uses ptrace itself, seccomp `notified` the tracer.
    A wait for a process is in the phase in which it begins; the instant after it is in that in which it ends. It is
    `idle` if it found no process that had ended.
    """

    point: Point
    phase: str
    after: str
    ms: float = 0
    notified: bool = False
    idle: bool = False


def is_step(one: Recorded) -> bool:
    """Return whether a call is a step of a clean-up."""
    anywhere = STEPS.get(one.point.operation, False)
    cleans = step_phase(one) not in ("setup", "execution") and one.point.operation in STEPS
    return (anywhere or cleans) and not one.idle


def step_phase(one: Recorded) -> str:
    """Return the phase of a call as a step of a clean-up: a wait reaps when it ends."""
    return one.after if one.point.operation == "wait" and one.after else one.phase


class Recording(msgspec.Struct, frozen=True):
    """The points of a run in order, what the tracer noted of what it could not see, and all events if asked for."""

    points: list[Recorded]
    notes: list[str]
    events: list[Event] = []


class Points(msgspec.Struct, frozen=True):
    """The points that came in two recordings of a run, in order, those that came in one of them, and the notes."""

    points: list[Recorded]
    unsteady: list[Recorded]
    notes: list[str]


def record_twice(
    target: Target,
    submission: Submission,
    *,
    recovery: bool,
    stop: Stop,
    settle: float = 0,
    every: bool = False,
    watched: bool = False,
) -> Points:
    """Record the points of a second and of a third run: which of them are the same. It is otherwise as `record`."""
    first, second = (
        record(
            target,
            submission,
            number,
            recovery=recovery,
            stop=stop,
            settle=settle,
            every=every,
            watched=watched,
            before=1 + number,
        )
        for number in (0, 1)
    )
    known, again = ({one.point: one for one in recording.points} for recording in (first, second))
    both = [one for one in first.points if one.point in again]
    return Points(
        [msgspec.structs.replace(one, idle=one.idle and again[one.point].idle) for one in both],
        [one for one in (*first.points, *second.points) if (one.point in known) != (one.point in again)],
        sorted({*first.notes, *second.notes}),
    )


def record(
    target: Target,
    submission: Submission,
    number: int,
    *,
    recovery: bool,
    stop: Stop,
    settle: float = 0,
    every: bool = False,
    watched: bool = False,
    explain: bool = False,
    before: int = 1,
) -> Recording:
    """Record the points of a run of `submission`, or, with `recovery`, those of a crashed run's recovery.

    With `every`, writes and messages are points, too; with `watched`, closed descriptors and waits for processes. With
    `explain`, each call is recorded with its arguments. So many other runs come `before` it.

    What a command leaves to processes that outlive it is recorded for `settle` seconds at most.
    It raises `TargetError` if the run is not right, or the target can be neither traced nor notified.
    """
    requests = crashing(every, watched) if recovery else recording_of(every, watched)
    requests = explaining(requests) if explain else requests
    notified: frozenset[str] = frozenset()
    while True:
        with open_host(target, settle, live=False) as host:
            session = Session(target, host, number, stop=stop)
            for _ in range(before):
                if wrong := session.again():
                    raise TargetError(f"{target.name}: warm-up run: {wrong}")
                session.renew()
            with session.tracing(notifying(requests, notified)) as tracing:
                wrong = _run(session, submission, recovery=recovery)
                if failing := tracing.failing() - notified:
                    # A run is crashed for its recovery as it has to be.
                    notified |= failing | ({"recover"} if "launch" in failing else set())
                    continue
                recording = _recording(tracing, recovery=recovery, notified=notified)
                if blind := [note for note in recording.notes if "which fails while" in note]:
                    hint = f"`leakcheck leaks --target {target.name}` kills it by the clock instead"
                    raise TargetError(f"{target.name} cannot be traced: {blind[0]}; {hint}")
                if wrong:
                    raise TargetError(f"{target.name}: traced run: {wrong}")
                events = calls_of(tracing.all_reports()) if explain else []
                return msgspec.structs.replace(recording, events=events)


def _run(session: Session, submission: Submission, *, recovery: bool) -> str:
    try:
        argv = session.prepare(submission)
        session.host.begin()
        if recovery:
            session.run_crashed(argv, submission)
            # As in a trial, what ends with the command has ended before the recovery.
            session.host.observe()
            wrong = session.recover()
        else:
            wrong = session.run(argv, submission)
        session.host.observe()
    except StoppedError:
        raise
    except TargetError as error:
        return str(error)
    return wrong


def _recording(tracing: Tracing, *, recovery: bool, notified: frozenset[str]) -> Recording:
    stages: Sequence[Stage] = ("recover",) if recovery else ("prepare", "launch", "finish")
    points: list[Recorded] = []
    notes = [*tracing.notes(), *(f"{stage}: {ONLY_BEFORE}" for stage in stages if stage in notified)]
    executed = False
    for stage in stages:
        numbered: dict[int, int] = {}
        for line in tracing.reports(stage):
            if "operation" in line:
                point = Point(stage, line["role"], line["operation"], line["class"], line["ordinal"])
                phase = PHASE_OF.get(stage, line["phase"])
                points.append(Recorded(point, phase, phase if line["returns"] else "", line["ms"], stage in notified))
                numbered[line.get("number", 0)] = len(points) - 1
            elif (at := numbered.get(line.get("idle", -1), -1)) >= 0:
                points[at] = msgspec.structs.replace(points[at], idle=True)
            elif "payload" in line:
                executed = True
                # The last call of the process that is the payload from now on; a command's own first one is none.
                role = line["payload"]
                for at in range(len(points) - 1, -1, -1):
                    point = points[at].point
                    if (point.stage, point.role, point.operation) == (stage, role, "execve") and points[at].after:
                        points[at] = msgspec.structs.replace(points[at], after="execution")
                        break
    _end_waits(points)
    if not recovery and not executed:
        notes.append("launch: no process executed the payload with exactly its arguments: no point is in execution")
    last = max((at for at, one in enumerate(points) if one.point.operation in RELEASES), default=len(points))
    for at, one in enumerate(points):
        after = "verdict" if at >= last and one.after == "cleanup" else one.after
        phase = "verdict" if at > last and one.phase == "cleanup" else one.phase
        points[at] = msgspec.structs.replace(one, phase=phase, after=after)
    return Recording(points, notes)


def _end_waits(points: list[Recorded]) -> None:
    """Put the instant after each wait into the phase of what the same process does next."""
    following: dict[tuple[str, str], str] = {}
    for at in range(len(points) - 1, -1, -1):
        one = points[at]
        role = (one.point.stage, one.point.role)
        if one.point.operation == "wait" and one.after and role in following:
            points[at] = msgspec.structs.replace(one, after=following[role])
        following[role] = one.phase
