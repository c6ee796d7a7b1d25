"""The damage to a file of state: ``state:FILE:DAMAGE``.

The supervisor is killed once the payload runs. Then FILE, as ``state_files`` of the adapter has it, is damaged, and the
target's recovery finds it so. `injectors.damages` has the damages.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from injectors.crash import Stage, crash_once_payload_runs, wait_for_kill
from injectors.damages import NONE, PLACES, damaged, is_damage
from injectors.plan import Plan
from injectors.protocol import Evidence, Keeps, Trial
from leakcheck.errors import UsageError

__all__ = ["State", "damage_file", "state_plan"]

_FORM = "give state:FILE:DAMAGE, FILE as in the adapter's state_files"


def state_plan(file: str, damage: str) -> Plan:
    """Return the plan of a `damage` to a state file, as the adapter names it."""
    return Plan("state", f"{file}:{damage}", ("sleeping",))


class State:
    """Damages a state file that a killed supervisor left."""

    kinds: ClassVar[tuple[str, ...]] = ("state",)
    may_miss = False
    stage: Stage = "launch"
    kills_payload = False

    def __init__(self, plan: Plan, file: str, damage: str) -> None:
        self.plan, self.file, self.damage = plan, file, damage

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""
        file, _, damage = plan.argument.rpartition(":")
        if not file:
            raise UsageError(f"plan {str(plan)!r}: it names no file; {_FORM}")
        if not is_damage(damage):
            raise UsageError(f"plan {str(plan)!r}: {damage!r} is no damage; {_FORM}")
        if plan.flags != ("sleeping",):
            raise UsageError(f"plan {str(plan)!r}: its payload sleeps until the kill; give the flag sleeping, no other")
        return cls(plan, file, damage)

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how a command is traced: the launch's supervisor is killed once the payload runs."""
        return crash_once_payload_runs(payload) if (stage, number) == (self.stage, 0) else None

    def apply(self, trial: Trial) -> Evidence:
        """Wait until the supervisor has been killed."""
        over = wait_for_kill(trial)
        return Evidence(fired=trial.fired(), when_ms=None if over else trial.elapsed_ms)

    def between(self, trial: Trial) -> bool:
        """Damage every file that the adapter's name stands for; return whether there was one to damage."""
        done = [damage_file(trial, path, self.damage) for path in trial.state_files(self.file)]
        return any(done)


def damage_file(trial: Keeps, path: str, damage: str) -> bool:
    """Damage the file at `path`, as commands see it; return whether it changed."""
    directory, _, name = path.rpartition("/")
    with trial.directory(directory or "/") as at:
        try:
            found = os.lstat(name, dir_fd=at)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            # It was damaged already.
            return False
        if damage == NONE:
            return True
        if damage in PLACES:
            _replace(at, name, damage)
            return True
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        try:
            content = os.pread(file, os.fstat(file).st_size, 0)
            if (new := damaged(content, damage)) is None:
                return False
            os.ftruncate(file, 0)
            _write(file, new)
        finally:
            os.close(file)
    return True


def _write(file: int, content: bytes) -> None:
    at = 0
    while at < len(content):
        at += os.pwrite(file, content[at:], at)


def _replace(at: int, name: str, damage: str) -> None:
    what, _, value = damage.partition("=")
    if what == "owner":
        os.chown(name, int(value), int(value), dir_fd=at, follow_symlinks=False)
    elif what == "mode":
        # Not by its name, which could be a link.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        try:
            os.fchmod(file, int(value, 8))
        finally:
            os.close(file)
    else:
        os.unlink(name, dir_fd=at)
        if what == "directory":
            os.mkdir(name, dir_fd=at)
        elif what == "fifo":
            os.mkfifo(name, dir_fd=at)
        elif what in ("dangling", "loop"):
            os.symlink(name if what == "loop" else f"{name}.gone", name, dir_fd=at)
