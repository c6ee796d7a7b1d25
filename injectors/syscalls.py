"""Faults of calls, alone or joined: ``STAGE:POINT:FAULT[+STAGE:POINT:FAULT…][,FLAG…]``.

POINT is an instant as in a kill's plan (`injectors.crash`), with ``#N`` for the N-th call, ``#N+`` for all from there
on until the command has ended, and ``#*`` for all. FAULT is the name of an error instead of the call (``EBUSY``), or
after it (``after:EIO``); ``delay=MSms``; or ``lie``: the call does not happen, and reports success. One element may be
a kill, ``before:SIGKILL``, to which the flags ``quiesced`` and WHO belong.
"""

import errno
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

import msgspec

from injectors.crash import ENDINGS, STAGES, Crash, Point, Stage, crash_once_payload_runs, wait_for_kill
from injectors.errnos import ALLOWED
from injectors.plan import Plan
from injectors.protocol import Evidence, Trial
from leakcheck._native import OPERATIONS
from leakcheck.errors import UsageError

__all__ = ["LONGEST_MS", "MODES", "NO_LIE", "WATCHED", "Fault", "Mode", "Syscalls", "fault_plan"]

Mode: TypeAlias = Literal["fail", "after", "lie", "delay"]
"""What happens to a call: an error instead of it, an error after it, a lie, a delay."""
MODES: tuple[Mode, ...] = ("fail", "after", "lie", "delay")
LONGEST_MS = 10_000
WATCHED = ("close", "wait")
"""Operations that are no crash points. Only what ptrace traces is stopped at them."""

_NEW = ["clone", "open", "open_tree", "fsmount", "mq_open", "msgget", "semget", "shmget", "bpf", "add_key"]
NO_LIE = frozenset([*_NEW, "request_key", "keyctl", "exit", "execve", "io_submit", "mq_receive", "msgrcv", "send"])
"""Operations whose result says something that nothing can stand for."""
_NO_RETURN = ("clone", "exit", "execve")
# No class has a colon.
_JOINED = re.compile(r"\+(?=[a-z]+:)")
_POINT = re.compile(r"(\d+(?:\.\d+)*)/([a-z_]+)(?:\(([^()]*)\))?#(\d{1,9}\+?|\*)", re.ASCII)
_DELAY = re.compile(r"delay=(\d{1,7})ms", re.ASCII)
_ERROR = re.compile(r"E[A-Z0-9]+")
_FORM = (
    "give STAGE:ROLE/OPERATION[(CLASS)]#N|#N+|#*:ERROR|after:ERROR|lie|delay=MSms, several joined by +, "
    "one of them may be a kill"
)
_ANY = "anyerrno"


class Fault(msgspec.Struct, frozen=True, order=True):
    """A fault at the call `point`, or, if it is `lasting`, at all such calls from there on."""

    point: Point
    mode: Mode
    lasting: bool = False
    error: str = ""
    ms: int = 0

    def __str__(self) -> str:
        """Return its form in a plan, without the stage."""
        how = {"fail": self.error, "after": f"after:{self.error}", "lie": "lie", "delay": f"delay={self.ms}ms"}
        point = str(self.point)
        if self.lasting:
            point = f"{point}+" if self.point.ordinal > 1 else f"{point.removesuffix('#1')}#*"
        return f"{point}:{how[self.mode]}"

    def covers(self, other: "Fault") -> bool:
        """Return whether it is at all calls at which `other` is; of two, the first of a plan happens."""
        first, here = (msgspec.structs.replace(one.point, ordinal=0) for one in (self, other))
        if first != here:
            return False
        same = self.point.ordinal == other.point.ordinal and not other.lasting
        return same or (self.lasting and self.point.ordinal <= other.point.ordinal)

    def request(self) -> dict[str, Any]:
        """Return what the tracer is asked for."""
        number = getattr(errno, self.error, 0)
        how: Any = {"fail": {"errno": number}, "after": {"after": number}, "lie": "lie", "delay": {"delay": self.ms}}
        at = {"role": self.point.role, "operation": self.point.operation, "class": self.point.class_}
        last = None if self.lasting else self.point.ordinal
        return at | {"first": self.point.ordinal, "last": last, "how": how[self.mode]}


def fault_plan(
    faults: Sequence[Fault],
    kill: Plan | None = None,
    *,
    notified: bool = False,
    ending: str = "normal",
    any_errno: bool = False,
) -> Plan:
    """Return the plan of `faults` and of a `kill`, whose flags, ending included, are those of the plan."""
    elements = [f"{one.point.stage}:{one}" for one in faults]
    flags = ["notified"] * notified + [ending] * (ending != "normal")
    if kill is not None:
        elements.append(f"{kill.kind}:{kill.argument}")
        flags = [*kill.flags]
    kind, _, argument = "+".join(elements).partition(":")
    return Plan(kind, argument, (*flags, *[_ANY] * any_errno))


class Syscalls:
    """Performs the faults of a plan, and its kill if there is one, in traced commands."""

    kinds: ClassVar[tuple[str, ...]] = STAGES
    may_miss = False

    def __init__(self, plan: Plan, faults: Sequence[Fault], kill: Crash | None, *, notified: bool) -> None:
        self.plan, self.faults, self.kill, self.notified = plan, tuple(faults), kill, notified
        self.stages = Counter(one.point.stage for one in faults)
        if kill is not None:
            self.stages[kill.stage] += 1
        # The stage whose end is of interest is the last one.
        self.stage: Stage = max(self.stages, key=STAGES.index)
        self.kills_payload = kill is not None and kill.kills_payload
        # A delay changes nothing, so that it is an honest run beside lies.
        self.compared = kill is None and any(one.mode in ("lie", "delay") for one in faults)
        # To be recovered, a run has to be crashed, unless it has a fault of its own.
        self._crashes = {*self.stages} == {"recover"}

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""
        first, *others = _JOINED.split(plan.argument)
        elements = [(plan.kind, first), *((kind, text) for kind, _, text in (one.partition(":") for one in others))]
        any_errno = plan.flags[-1:] == (_ANY,)
        faults: list[Fault] = []
        kill: tuple[str, str] | None = None
        for stage, text in elements:
            if _is_kill(text):
                if kill is not None:
                    raise _wrong(plan, f"{text!r} is a second kill, and there can be one")
                kill = stage, text
            else:
                fault = _fault(plan, stage, text, any_errno=any_errno)
                if covering := [one for one in faults if one.covers(fault)]:
                    raise _wrong(plan, f"'{fault}' never happens: '{covering[0]}' is at the same call, and comes first")
                faults.append(fault)
        if not faults:
            # Its own words say what is wrong.
            killer = Crash.of(plan)
            return cls(plan, (), killer, notified=killer.notified)
        flags = plan.flags[: len(plan.flags) - any_errno]
        if kill is None:
            rest = [flag for flag in flags if flag != "notified"]
            if rest[1:] or (rest and rest[0] not in ENDINGS):
                raise _wrong(plan, f"{rest[0]!r} is no flag of a plan without a kill; ENDING is {', '.join(ENDINGS)}")
        if kill is not None and kill[0] not in STAGES:
            raise _wrong(plan, f"{kill[0]!r} is no stage; STAGE is {', '.join(STAGES)}")
        killer_or_none = Crash.of(Plan(*kill, flags)) if kill is not None else None
        notified = "notified" in flags
        for one in faults if notified else ():
            if one.mode == "after" or one.point.operation in WATCHED:
                raise _wrong(plan, f"'{one}': a target that uses ptrace itself is stopped before its crash points only")
        return cls(plan, faults, killer_or_none, notified=notified)

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how the `number`-th command of `stage` is traced."""
        faults = [one.request() for one in self.faults if one.point.stage == stage]
        kill = self.kill.trace(stage, number, payload) if self.kill is not None and self.kill.stage == stage else None
        if not (faults or kill):
            crash = crash_once_payload_runs(payload) if stage == "launch" and self._crashes else None
            return crash and {**crash, "notified": self.notified}
        usual = {"root": number, "payload": list(payload), "fault": None}
        return {**usual, **(kill or {}), "faults": faults, "notified": self.notified}

    def apply(self, trial: Trial) -> Evidence:
        """Wait for the kill of the run, if it is killed; without one, the run ends by itself."""
        if self.kill is not None and (self.kill.stage == "launch" or not self.faults):
            return self.kill.apply(trial)
        if self._crashes:
            wait_for_kill(trial)
        return Evidence(fired=trial.fired())


def _is_kill(text: str) -> bool:
    """Return whether an element is a kill, or at least no fault."""
    point, _, how = text.partition(":")
    lasting = point[-1:] in ("+", "*")
    return not (lasting or how.startswith(("delay", "lie")) or _ERROR.fullmatch(how.removeprefix("after:")))


def _fault(plan: Plan, stage: str, text: str, *, any_errno: bool) -> Fault:
    kind = next((one for one in STAGES if one == stage), None)
    if kind is None:
        raise _wrong(plan, f"{stage!r} is no stage; STAGE is {', '.join(STAGES)}")
    named, _, how = text.partition(":")
    if (found := _POINT.fullmatch(named)) is None:
        raise _wrong(plan, f"{named!r} is no point")
    role, operation, class_, ordinal = found.groups()
    if operation not in OPERATIONS:
        raise _wrong(plan, f"{operation!r} is no operation; there are {', '.join(OPERATIONS)}")
    lasting = not ordinal.isdecimal()
    first = int(ordinal.rstrip("+*") or 1)
    if first < 1:
        raise _wrong(plan, "points are counted from 1")
    point = Point(kind, role, operation, class_ or "", first)
    if how == "lie":
        if operation in NO_LIE:
            raise _wrong(plan, f"{text!r}: nothing can stand for what {operation} returns")
        return Fault(point, "lie", lasting)
    if (delay := _DELAY.fullmatch(how)) is not None:
        if not 1 <= int(delay[1]) <= LONGEST_MS:
            raise _wrong(plan, f"{how!r}: give 1 to {LONGEST_MS} ms")
        return Fault(point, "delay", lasting, ms=int(delay[1]))
    mode: Mode = "after" if how.startswith("after:") else "fail"
    error = how.removeprefix("after:")
    if not (_ERROR.fullmatch(error) and hasattr(errno, error)):
        raise _wrong(plan, f"{how or 'nothing'!r} is no fault")
    if operation == "exit" or (mode == "after" and operation in _NO_RETURN):
        raise _wrong(plan, f"{text!r}: {operation} has no result to replace")
    if not any_errno and error not in ALLOWED.get(operation, ()):
        there = ", ".join(sorted(ALLOWED.get(operation, ()))) or "none that leakcheck knows of"
        raise _wrong(
            plan, f"{text!r}: no {error} in the manual page of {operation}; it has {there}; --any-errno allows it"
        )
    return Fault(point, mode, lasting, error)


def _wrong(plan: Plan, what: str) -> UsageError:
    return UsageError(f"plan {str(plan)!r}: {what}; {_FORM}")
