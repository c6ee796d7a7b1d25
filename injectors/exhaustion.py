"""An exhausted resource: ``RESOURCE:HOW[,execution|,cleanup][,under]``.

``disk:full@64K`` leaves so much room on every file system, ``disk:inodes@2`` so many inodes; ``fd:limit=8`` limits the
numbers of file descriptors; ``pids:limit=3`` lets so many more processes start; ``memory:full@1M`` leaves so much
memory, ``memory:pressure=90%`` takes most of 64 MiB; ``cpu:saturate`` and ``cpu:saturate@high`` keep every processor
busy, ``cpu:quota=5%`` leaves a part of one. It begins before the launched command runs, or, by a flag, once the payload
runs or when it ends. It ends with the run, or, with ``under``, after the recovery.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

from injectors.cgroup_limits import BALLOON, Cpu, Memory, Processes
from injectors.crash import Stage, recording
from injectors.plan import Plan
from injectors.protocol import Evidence, Trial
from injectors.resources import Disk, Files, Limit, read_size
from injectors.timed import ended
from leakcheck.errors import UnavailableError, UsageError, reason

__all__ = ["ERRORS", "MOMENTS", "RESOURCES", "Exhaustion", "Moment", "exhaustion_plan"]

Moment: TypeAlias = Literal["start", "execution", "cleanup"]
"""When a resource is exhausted: before the command runs, once the payload runs, or when the payload ends."""
MOMENTS: tuple[Moment, ...] = get_args(Moment)
RESOURCES = ("disk", "fd", "memory", "cpu", "pids")
ERRORS: Mapping[str, Sequence[str]] = {
    "disk": Disk.errors,
    "fd": Files.errors,
    "memory": Memory.errors,
    "cpu": Cpu.errors,
    "pids": Processes.errors,
}
"""Names of the errors of calls that lack a resource."""
_HELD = {"start": "start", "execution": "payload", "cleanup": "end"}
_PAYLOAD = "payload"
# A run that executes its payload again is not held again.
_TIMES = 64
_FORMS = {
    "disk": "full@SIZE or inodes@N",
    "fd": "limit=N, N from 3",
    "memory": "full@SIZE or pressure=N%",
    "cpu": "saturate, saturate@high or quota=N%",
    "pids": "limit=N",
}
_NUMBER = re.compile(r"([a-z]+)(=|@)(\d{1,6})(%?)")
_SIZED = re.compile(r"full@(.*)")
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")
_STEP_MS = 2
# A run that has not come so far by then hangs, and not for lack of anything.
_PATIENCE_MS, _PAYLOAD_PATIENCE_MS = 60_000, 20_000
# A tenth of a processor is left to others; at -20, a hundredth, and a traced run takes a minute.
_HIGH = -10


def exhaustion_plan(resource: str, how: str, moment: Moment = "start", *, under: bool = False) -> Plan:
    """Return the plan that exhausts `resource` at `moment`; with `under`, until after the recovery."""
    flags = [moment] * (moment != "start") + ["under"] * under
    return Plan(resource, how, tuple(flags))


class Exhaustion:
    """Exhausts a resource of the trial's arena."""

    kinds: ClassVar[tuple[str, ...]] = RESOURCES
    # What the target does not need is not missed.
    may_miss = True
    stage: Stage = "launch"
    kills_payload = False

    def __init__(self, plan: Plan, limit: Limit, moment: Moment, *, under: bool) -> None:
        self.plan, self.limit, self.moment, self.under = plan, limit, moment, under
        self.namespaces: dict[str, str] = {}
        self._met = False

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""

        def wrong(what: str) -> UsageError:
            return UsageError(f"plan {str(plan)!r}: {what}; give {plan.kind}:HOW, HOW is {_FORMS[plan.kind]}")

        limit = _limit(plan.kind, plan.argument)
        if limit is None:
            raise wrong(f"{plan.argument or 'nothing'!r} is no way to exhaust it")
        flags = list(plan.flags)
        moment: Moment = next((one for one in MOMENTS[1:] if flags[:1] == [one]), "start")
        del flags[: moment != "start"]
        under = flags[:1] == ["under"] and bool(flags.pop(0))
        if flags:
            raise wrong(f"{flags[0]!r} is no flag at this place; the flags are execution or cleanup, then under")
        if under and not isinstance(limit, Disk):
            raise wrong("'under': a recovery can be started under a full disk only")
        return cls(plan, limit, moment, under=under)

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how the `number`-th command of `stage` is traced: the launch, which waits at the moment."""
        if (stage, number) != (self.stage, 0):
            return None
        # Writes are seen only where an error of theirs tells something: a tracer that is short of time is slow.
        every = bool(self.limit.errors)
        hold = list(dict.fromkeys([_HELD[self.moment], _PAYLOAD]))
        return {**recording(0, payload, every=every), "explain": True, "hold": hold}

    def apply(self, trial: Trial) -> Evidence:
        """Wait for the moment, and exhaust the resource; do nothing if the run ends before."""
        try:
            evidence = self._exhaust(trial)
            if self.moment == "start":
                self._wait(trial, _PAYLOAD, trial.elapsed_ms + _PAYLOAD_PATIENCE_MS)
            return evidence
        finally:
            for _ in range(_TIMES):
                trial.release()

    def _wait(self, trial: Trial, instant: str, until_ms: float = _PATIENCE_MS) -> int:
        """Return the process that is held at an instant, 0 if the run ends before; the payload is looked at."""
        while (pid := trial.held(instant)) == 0:
            if self.moment == "cleanup" and not self._met and (payload := trial.held(_PAYLOAD)):
                self._meet(payload)
                trial.release()
            if ended(trial.supervisor, _STEP_MS) or trial.elapsed_ms > until_ms:
                return 0
        if instant == _PAYLOAD:
            self._meet(pid)
        return pid

    def _meet(self, payload: int) -> None:
        """Note in which namespaces the payload runs, as far as the user may know."""
        self._met = True
        for kind in _NAMESPACES:
            with contextlib.suppress(OSError):
                self.namespaces[kind] = str(Path(f"/proc/{payload}/ns/{kind}").readlink())

    def _exhaust(self, trial: Trial) -> Evidence:
        if (pid := self._wait(trial, _HELD[self.moment])) == 0:
            return Evidence(fired=False)
        when = trial.elapsed_ms
        try:
            self.limit.set(trial.room, 0 if self.moment == "start" else pid)
        except OSError as error:
            hint = "" if os.geteuid() == 0 else "; run as root"
            what = f"plan {str(self.plan)!r} cannot be performed here: {reason(error)}{hint}"
            raise UnavailableError(what) from error
        if self.moment == "start":
            trial.release()
        return Evidence(fired=True, when_ms=when)


def _limit(resource: str, how: str) -> Limit | None:
    if (sized := _SIZED.fullmatch(how)) is not None and resource in ("disk", "memory"):
        size = read_size(sized[1])
        if size is None:
            return None
        return Disk("full", size) if resource == "disk" else Memory(size)
    if resource == "cpu" and how in ("saturate", "saturate@high"):
        return Cpu(nice=_HIGH if how.endswith("high") else 0)
    if (found := _NUMBER.fullmatch(how)) is None:
        return None
    number = int(found[3])
    match resource, f"{found[1]}{found[2]}{found[4]}":
        case "disk", "inodes@":
            return Disk("inodes", number)
        case "fd", "limit=" if number >= 3:
            return Files(number)
        case "pids", "limit=":
            return Processes(number)
        case "memory", "pressure=%" if 1 <= number <= 100:
            return Memory(BALLOON * (100 - number) // 100, balloon=BALLOON * number // 100)
        case "cpu", "quota=%" if 1 <= number <= 100:
            return Cpu(share=number)
    return None
