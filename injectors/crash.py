"""The kill at a crash point: ``STAGE:POINT:before|after:SIGNAL[,quiesced][,notified][,WHO][,ENDING]``.

STAGE is the command that is killed: prepare, launch, finish or recover. POINT is an instant of it as the tracer names
it: ``0.1/mount(/newroot/proc)#2`` is the second mount on this path by the first child of the first command. SIGNAL is
SIGKILL, or what an operator or a closed terminal sends. A command that uses ptrace itself is `notified`: seccomp
reports its calls, and there are only kills before them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import msgspec

from injectors.plan import Plan
from injectors.protocol import Evidence, Trial
from injectors.timed import PATIENCE, Kill, ended, kill
from leakcheck._native import OPERATIONS
from leakcheck.errors import UsageError

__all__ = ["ENDINGS", "SENT", "STAGES", "VICTIMS", "Crash", "Point", "Sent", "Stage", "Victim", "When", "crash_plan"]

Stage: TypeAlias = Literal["prepare", "launch", "finish", "recover"]
"""A target's commands, by when they run."""
STAGES: tuple[Stage, ...] = get_args(Stage)
Victim: TypeAlias = Literal["supervisor", "helper", "all", "tree", "freeze"]
"""Who is killed: the command itself; the process at the point; all but the payload; all; all, stopped first."""
VICTIMS: tuple[Victim, ...] = get_args(Victim)
When: TypeAlias = Literal["before", "after"]
"""Whether the call at the point has happened."""
Sent: TypeAlias = Literal["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"]
"""What those who are killed get."""
SENT: tuple[Sent, ...] = get_args(Sent)
ENDINGS = ("timeout", "crash", "sleeping")
"""Flags that name how the run ends, or what its payload does; without one, the payload ends by itself."""

_FORM = "give STAGE:ROLE/OPERATION[(CLASS)]#N:before|after:SIGNAL[,quiesced][,notified][,WHO][,ENDING]"
_POINT = re.compile(r"(\d+(?:\.\d+)*)/([a-z_]+)(?:\(([^()]*)\))?#(\d{1,9})", re.ASCII)
# Milliseconds between two looks at what the tracer reported.
_STEP_MS = 2
_PAYLOAD = "payload"


class Point(msgspec.Struct, frozen=True, order=True):
    """A crash point: the `ordinal`-th call of this operation on this class by this role, in a stage.

    A role is a process by the order of its creation: ``0`` is the stage's first command, ``0.2`` its second child.
    """

    stage: Stage
    role: str
    operation: str
    class_: str
    ordinal: int

    def __str__(self) -> str:
        """Return its form in a plan, without the stage."""
        return f"{self.role}/{self.operation}{f'({self.class_})' if self.class_ else ''}#{self.ordinal}"


def crash_plan(
    point: Point,
    when: When,
    *,
    quiesced: bool = False,
    notified: bool = False,
    victim: Victim = "supervisor",
    ending: str = "normal",
    sent: Sent = "SIGKILL",
) -> Plan:
    """Return the plan of a kill at `point`; with `quiesced`, once all other processes of the run block."""
    flags = ["quiesced"] * quiesced + ["notified"] * notified
    flags += [victim] * (victim != "supervisor") + [ending] * (ending != "normal")
    return Plan(point.stage, f"{point}:{when}:{sent}", tuple(flags))


class Crash:
    """Kills at a point, which the tracer of the run's arena finds."""

    kinds: ClassVar[tuple[str, ...]] = STAGES
    may_miss = False

    def __init__(
        self, plan: Plan, point: Point, when: When, victim: Victim, sent: Sent, *, quiesced: bool, notified: bool
    ) -> None:
        self.plan, self.point, self.when, self.victim, self.sent = plan, point, when, victim, sent
        self.quiesced, self.notified = quiesced, notified
        self.stage = point.stage
        self.kills_payload = victim in ("tree", "freeze") and sent == "SIGKILL"

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""

        def wrong(what: str) -> UsageError:
            return UsageError(f"plan {str(plan)!r}: {what}; {_FORM}")

        stage = next(stage for stage in STAGES if stage == plan.kind)
        parts = plan.argument.split(":")
        if (found := _POINT.fullmatch(parts[0])) is None:
            raise wrong(f"{parts[0]!r} is no point")
        role, operation, class_, ordinal = found.groups()
        if operation not in OPERATIONS:
            raise wrong(f"{operation!r} is no operation; there are {', '.join(OPERATIONS)}")
        when = next((one for one in get_args(When) if parts[1:2] == [one]), None)
        if when is None:
            raise wrong(f"{parts[1] if parts[1:] else 'nothing'!r} is neither before nor after")
        sent = next((one for one in SENT if parts[2:] == [one]), None)
        if sent is None:
            raise wrong(f"{':'.join(parts[2:]) or 'nothing'!r} is no signal of a plan; SIGNAL is {', '.join(SENT)}")
        if int(ordinal) < 1:
            raise wrong("points are counted from 1")
        if operation == "exit" and when == "after":
            raise wrong("a process that has ended has no after")
        rest = list(plan.flags)
        quiesced = rest[:1] == ["quiesced"] and bool(rest.pop(0))
        notified = rest[:1] == ["notified"] and bool(rest.pop(0))
        if notified and when == "after":
            raise wrong("a target that uses ptrace itself is seen before its calls only: 'notified' has no after")
        victim: Victim = next((one for one in VICTIMS[1:] if rest[:1] == [one]), "supervisor")
        del rest[: victim != "supervisor"]
        if rest[:1] and rest[0] in ENDINGS:
            rest.pop(0)
        if victim == "freeze" and sent != "SIGKILL":
            raise wrong(f"'freeze': stopped processes act on SIGKILL alone, not on {sent}")
        if rest:
            raise wrong(
                f"{rest[0]!r} is no flag at this place; WHO is {', '.join(VICTIMS[1:])}, ENDING {', '.join(ENDINGS)}"
            )
        point = Point(stage, role, operation, class_ or "", int(ordinal))
        return cls(plan, point, when, victim, sent, quiesced=quiesced, notified=notified)

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how the `number`-th command of `stage` is traced."""
        if stage == self.stage:
            found = request(number, payload, self.point, self.when, self.victim, self.sent, quiesced=self.quiesced)
        elif stage == "launch" and self.stage == "recover":
            found = crash_once_payload_runs(payload)
        else:
            return None
        return {**found, "notified": self.notified}

    def apply(self, trial: Trial) -> Evidence:
        """Wait until the tracer has killed, or the run has ended; who acts on no other signal gets SIGKILL at last."""
        over = wait_for_kill(trial)
        when = trial.elapsed_ms
        who: Kill = "supervisor" if self.victim == "supervisor" else "tree"
        waited = self.sent != "SIGKILL" and self.victim != "helper"
        if not over and waited and not ended(trial.supervisor, PATIENCE * 1000):
            kill(trial.supervisor, trial.tree, who)
        return Evidence(fired=trial.fired(), when_ms=None if over else when)


def wait_for_kill(trial: Trial) -> bool:
    """Wait until the tracer has killed, or the run has ended; return whether it has ended."""
    while not (over := ended(trial.supervisor, _STEP_MS)):
        if trial.fired():
            break
    return over


def request(
    number: int,
    payload: Sequence[str],
    point: Point,
    when: When,
    victim: Victim,
    sent: Sent | Literal["SIGSTOP"] = "SIGKILL",
    *,
    quiesced: bool,
) -> Mapping[str, Any]:
    """Return the tracer's request for a kill, or another signal, at `point`."""
    fault = {"role": point.role, "operation": point.operation, "class": point.class_, "ordinal": point.ordinal}
    fault |= {"after": when == "after", "victim": victim, "signal": sent, "quiesced": quiesced}
    return {"root": number, "payload": list(payload), "fault": fault}


def crash_once_payload_runs(payload: Sequence[str]) -> Mapping[str, Any]:
    """Return the tracer's request for a kill of the supervisor once the payload runs and all else blocks."""
    point = Point("launch", "", _PAYLOAD, "", 1)
    return request(0, payload, point, "after", "supervisor", quiesced=True)


def recording(number: int, payload: Sequence[str], *, every: bool = False, watched: bool = False) -> Mapping[str, Any]:
    """Return the tracer's request to record the points of a command.

    With `every`, writes and messages are points too; with `watched`, closed descriptors and waits for processes.
    """
    return {"root": number, "payload": list(payload), "fault": None, "every": every, "watched": watched}
