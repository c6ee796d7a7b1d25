"""What happens to the lock of a box, and to who has it: ``lock:ACTION[,waiting]`` or ``lock:FILE:DAMAGE,WHEN``.

Several runs contend for one box. ACTION is ``contend=N`` (N at once, and one more once they were refused), ``late=N``
(N wait, and N more come while the second of all has it), ``kill-holder``, ``stop-holder`` (and continue it),
``outlast-holder`` (it is stopped for long), ``stop-kill-holder``, ``recover-holder`` (the target's recovery while it is
held), ``reuse-pid`` (another process gets the pid of the killed holder), ``another-boot`` (the holder's lock files are
there after a boot, and its pid is another's), ``kill=STAGE:POINT:before|after``, with a crash point of the holder, or
of the recovery after a kill, or ``stop=launch:POINT``: it is stopped after that call, others come, and it continues.
FILE is a lock file, as ``locks.files`` of the adapter has it; WHEN says whether it is damaged while it is ``held``,
after its holder was killed (``stale``), or while nobody has it (``free``).
"""

import os
import re
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from injectors.crash import Crash, Point, When, request
from injectors.damages import is_damage
from injectors.filesystems import keeps_data
from injectors.plan import Plan
from injectors.protocol import Contest, Evidence
from injectors.state import MOST_BYTES, damage_file
from leakcheck.errors import UsageError

__all__ = [
    "ACTIONS",
    "BOOT",
    "FEWEST",
    "LEASE",
    "LINKS",
    "MOST",
    "WHENS",
    "Locks",
    "damage_plan",
    "kill_plan",
    "lock_plan",
    "stop_plan",
]

ACTIONS = ("kill-holder", "stop-holder", "stop-kill-holder", "recover-holder", "reuse-pid")
"""What happens to the holder while its payload runs."""
LEASE = "outlast-holder"
"""The holder is stopped for longer than a lock may last that nobody renews: a lease."""
BOOT = "another-boot"
"""The machine has booted since the holder was killed, with the holder's lock file, and its pid is another process's."""
WHENS = ("held", "stale", "free")
"""When a lock file is damaged."""
LINKS = ("inode", "elsewhere")
"""Damages of lock files alone: another file of the same content; a link to another file."""
FEWEST, MOST = 2, 64
"""How many may contend."""

# How many come after a fault.
_FEW = 3
# Stages that are killed or stopped at a point, by what is done.
_STAGES = {"kill": ("launch", "finish", "recover"), "stop": ("launch",)}
_FORM = (
    f"give lock:contend=N, lock:late=N, lock:{BOOT}, lock:{LEASE}, lock:ACTION (one of {', '.join(ACTIONS)}), "
    "lock:kill=STAGE:POINT:before|after or lock:stop=launch:POINT, each with ,waiting or not; "
    f"or lock:FILE:DAMAGE,WHEN (one of {', '.join(WHENS)}), FILE as in the adapter's locks.files"
)


def lock_plan(action: str, *, waiting: bool = False) -> Plan:
    """Return the plan of an action, such as ``contend=8`` or ``kill-holder``."""
    return Plan("lock", action, ("waiting",) * waiting)


def kill_plan(point: Point, when: When, *, waiting: bool = False) -> Plan:
    """Return the plan of a kill of the holder at `point`; with `waiting`, others wait for the box by then."""
    return lock_plan(f"kill={point.stage}:{point}:{when}", waiting=waiting)


def stop_plan(point: Point) -> Plan:
    """Return the plan of a stop of the holder after `point`; it continues once others have come."""
    return lock_plan(f"stop={point.stage}:{point}")


def damage_plan(file: str, damage: str, when: str) -> Plan:
    """Return the plan of a `damage` to a lock file, as the adapter names it."""
    return Plan("lock", f"{file}:{damage}", (when,))


class Locks:
    """Lets runs contend for a box, and acts on its lock or its holder."""

    kinds: ClassVar[tuple[str, ...]] = ("lock",)
    may_miss = False
    kills_payload = False

    def __init__(self, plan: Plan, *, waiting: bool) -> None:
        self.plan, self.waiting = plan, waiting
        self.count = 0
        self.file = self.damage = self.when = ""
        self.crash: Crash | None = None
        self.stops = False
        self.stage = "launch"

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""

        def wrong(what: str) -> UsageError:
            return UsageError(f"plan {str(plan)!r}: {what}; {_FORM}")

        made = cls(plan, waiting=plan.flags == ("waiting",))
        action = plan.argument
        counted = re.fullmatch(r"(contend|late)=(\d{1,3})", action, re.ASCII)
        at_point = action.partition("=")[0] if action.startswith(("kill=", "stop=")) else ""
        if counted or action in (*ACTIONS, BOOT, LEASE) or at_point:
            if plan.flags not in ((), ("waiting",)[: action not in (BOOT, LEASE)]):
                raise wrong(f"{plan.flags[0]!r} is no flag of it")
            if counted and not FEWEST <= int(counted[2]) <= MOST:
                raise wrong(f"{counted[2]} contenders: give {FEWEST} to {MOST}")
            made.count = int(counted[2]) if counted else _FEW
            if at_point:
                stage, _, rest = action.partition("=")[2].partition(":")
                if stage not in _STAGES[at_point]:
                    raise wrong(f"{stage!r} is no stage to {at_point}; give {' or '.join(_STAGES[at_point])}")
                if made.waiting and stage == "recover":
                    raise wrong("'waiting' is no flag of it")
                made.stops = at_point == "stop"
                made.crash = Crash.of(Plan(stage, f"{rest}:{'after:' * made.stops}SIGKILL"))
                made.stage = stage
            return made
        made.file, _, made.damage = action.rpartition(":")
        if not made.file:
            raise wrong(f"{action or 'nothing'!r} is no action")
        if made.damage not in LINKS and (not is_damage(made.damage) or made.damage == "none"):
            raise wrong(f"{made.damage!r} is no damage")
        if len(plan.flags) != 1 or plan.flags[0] not in WHENS:
            raise wrong("it has no moment")
        made.when = plan.flags[0]
        return made

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how a command of the holder is traced: it is killed at the point."""
        if self.crash is None or stage != self.stage:
            return None
        sent: Literal["SIGSTOP", "SIGKILL"] = "SIGSTOP" if self.stops else "SIGKILL"
        return request(number, payload, self.crash.point, self.crash.when, "supervisor", sent, quiesced=False)

    def apply(self, trial: object) -> Evidence:
        """Contend instead."""
        raise AssertionError(f"plan {self.plan} is for a contest, not for {trial}")

    def contend(self, contest: Contest) -> Evidence:
        """Act as the plan says."""
        action = self.plan.argument.partition("=")[0]
        if self.stage == "recover":
            fired = self._kill_recovery(contest)
        elif self.crash is not None:
            fired = self._stop_at_point(contest) if self.stops else self._kill_at_point(contest)
        elif self.file:
            fired = self._damage(contest)
        elif action == "contend":
            self._come(contest, self.count, first=0)
            contest.wait()
            fired = True
        elif action == "late":
            fired = self._late(contest)
        elif action == BOOT:
            fired = contest.hold() and self._boot(contest)
        else:
            fired = contest.hold() and self._act(action, contest)
        contest.wait()
        return Evidence(fired=fired, when_ms=contest.elapsed_ms)

    def _come(self, contest: Contest, count: int, first: int = 1) -> None:
        """Let so many come at once, and one more once they were refused: what their refusal left may let it in."""
        contest.come(count, waiting=self.waiting)
        if contest.wait_for_others(first) and not self.waiting:
            contest.come(1)
            contest.wait_for_others()

    def _late(self, contest: Contest) -> bool:
        """Let some wait, and others come while the second of all has the box."""
        if not contest.hold():
            return False
        contest.come(self.count, waiting=True)
        contest.wait_for_others()
        contest.release()
        contest.wait(holder=True)
        contest.come(self.count, waiting=self.waiting)
        return True

    def _act(self, action: str, contest: Contest) -> bool:
        if self.waiting:
            contest.come(_FEW, waiting=True)
            contest.wait_for_others()
        if action == "recover-holder":
            contest.recover()
        fired = contest.signal(signal.SIGSTOP) if action.startswith(("stop", "outlast")) else True
        if not self.waiting and action in ("stop-holder", "stop-kill-holder", "recover-holder"):
            self._come(contest, _FEW)
        if action == LEASE:
            contest.outlast()
            self._come(contest, _FEW)
        if action in ("stop-holder", LEASE):
            return contest.signal(signal.SIGCONT) and fired
        if action == "recover-holder":
            return fired
        fired = contest.signal(signal.SIGKILL) and fired
        contest.killed()
        contest.wait(holder=True)
        if action == "reuse-pid":
            fired = contest.take_pid() and fired
            # How long that took is no matter of the target's.
            contest.killed()
        if not self.waiting:
            contest.come(_FEW)
        return fired

    def _boot(self, contest: Contest) -> bool:
        """Kill the holder, boot with its lock files, and let others come beside a process that has its pid."""
        contest.keep_locks()
        contest.signal(signal.SIGKILL)
        contest.wait(holder=True)
        contest.killed()
        fired = contest.boot() and contest.take_pid()
        # The boot is no matter of the target's.
        contest.killed()
        contest.come(_FEW)
        return fired

    def _kill_at_point(self, contest: Contest) -> bool:
        held = contest.hold(until_seen=self.waiting)
        early = self.waiting and held
        if early:
            contest.come(_FEW, waiting=True)
            contest.wait_for_others()
        if fired := contest.wait_for_fault():
            contest.killed()
        if not early:
            contest.come(_FEW, waiting=self.waiting)
        return fired

    def _stop_at_point(self, contest: Contest) -> bool:
        contest.hold(until_seen=False)
        if not contest.wait_for_fault():
            return False
        self._come(contest, _FEW)
        return contest.signal(signal.SIGCONT)

    def _kill_recovery(self, contest: Contest) -> bool:
        """Kill the holder, and then its recovery."""
        if not contest.hold():
            return False
        contest.signal(signal.SIGKILL)
        contest.killed()
        contest.wait(holder=True)
        fired = contest.recover_once()
        contest.come(_FEW)
        return fired

    def _damage(self, contest: Contest) -> bool:
        if not contest.hold():
            return False
        if self.when == "stale":
            contest.signal(signal.SIGKILL)
            contest.killed()
        elif self.when == "free":
            contest.release()
        if self.when != "held":
            contest.wait(holder=True)
        contest.tolerate()
        alone = "*" not in self.file
        done = [damage_lock(contest, path, self.damage, alone=alone) for path in contest.lock_files(self.file)]
        contest.come(_FEW)
        return any(done)


def damage_lock(contest: Contest, path: str, damage: str, *, alone: bool = False) -> bool:
    """Damage the lock file at `path`; return whether it changed. One that is `alone` may be a link or a directory."""
    if damage not in LINKS:
        return damage_file(contest, path, damage, follow=alone, directories=alone)
    directory, _, name = path.rpartition("/")
    with contest.directory(directory or "/") as at:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        except OSError:
            # It was damaged already.
            return False
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES or not keeps_data(file):
                return False
            content = os.pread(file, found.st_size, 0)
        finally:
            os.close(file)
        if damage == "elsewhere":
            os.unlink(name, dir_fd=at)
            os.symlink(contest.elsewhere(content), name, dir_fd=at)
            return True
        made = f"{name}.other"
        new = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, found.st_mode & 0o777, dir_fd=at)
        try:
            os.write(new, content)
        finally:
            os.close(new)
        os.rename(made, name, src_dir_fd=at, dst_dir_fd=at)
    return True
