"""The damage to a file of state: ``state:FILE:DAMAGE``, with ``,sleeping``, ``,sleeping,beside`` or ``,living``.

FILE is as `state_files` of the adapter has it. `injectors.damages` has the damages. The supervisor is killed once the
payload runs, then FILE is damaged, and the target's recovery finds it so. With ``beside``, another box is in use
meanwhile. With ``living``, the supervisor lives, and the run ends by its wall limit. ``at=N`` and the halves of a
rename kill it right after the N-th change of FILE's directory. After a power cut (``cut``), nothing runs.
"""

import errno
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from injectors.crash import Point, Stage, crash_once_payload_runs, request, wait_for_kill
from injectors.damages import MOVES, NONE, PLACES, damaged, is_damage, kind_of, places_of
from injectors.filesystems import keeps_data
from injectors.history import Event, history_of, torn, watched
from injectors.plan import Plan
from injectors.protocol import Evidence, Keeps, Trial
from injectors.timed import ended
from leakcheck.errors import UsageError

__all__ = ["MOST_BYTES", "State", "damage_file", "happens_in", "state_plan"]

_FORM = "give state:FILE:DAMAGE, FILE as in the adapter's state_files"
_STEP_MS = 2


def happens_in(damage: str) -> str:
    """Return the flag of a damage: none if it has an instant of its own."""
    return "" if kind_of(damage) in ("at", "cut", *MOVES) else "sleeping"


def state_plan(file: str, damage: str, *, living: bool = False, beside: bool = False) -> Plan:
    """Return the plan of a `damage` to a state file, as the adapter names it.

    With `living`, its supervisor lives; with `beside`, another box is in use meanwhile.
    """
    flags = ("living",) if living else (happens_in(damage), *("beside",) * beside)
    return Plan("state", f"{file}:{damage}", tuple(filter(None, flags)))


class State:
    """Damages a state file, which a killed supervisor left or a living one has."""

    kinds: ClassVar[tuple[str, ...]] = ("state",)
    may_miss = False
    stage: Stage = "launch"
    kills_payload = False

    def __init__(self, plan: Plan, file: str, damage: str) -> None:
        self.plan, self.file, self.damage = plan, file, damage
        self.continues = plan.flags == ("living",)
        self._place = damage.partition("=")[2]
        self._timed = kind_of(damage) in ("at", *MOVES)

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""
        file, _, damage = plan.argument.rpartition(":")
        if not file:
            raise UsageError(f"plan {str(plan)!r}: it names no file; {_FORM}")
        if not is_damage(damage):
            raise UsageError(f"plan {str(plan)!r}: {damage!r} is no damage; {_FORM}")
        usual = happens_in(damage)
        if usual and plan.flags not in ((usual,), (usual, "beside"), ("living",)):
            raise UsageError(f"plan {str(plan)!r}: give the flag sleeping, alone or with beside after it, or living")
        if not usual and plan.flags:
            raise UsageError(f"plan {str(plan)!r}: {kind_of(damage)} has an instant of its own, and no flag")
        return cls(plan, file, damage)

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how a command is traced: the launch's supervisor is killed at the instant of the damage."""
        if (stage, number) != (self.stage, 0) or self.continues or kind_of(self.damage) == "cut":
            return None
        if not self._timed:
            return crash_once_payload_runs(payload)
        change = Point("launch", "", "change", "", int(self._place.partition(".")[0]))
        asked = request(0, payload, change, "after", "supervisor", quiesced=False)
        return {**asked, "files": [watched(self.file)]}

    def apply(self, trial: Trial) -> Evidence:
        """Wait until the supervisor has been killed; or until the payload runs, and damage the file."""
        if kind_of(self.damage) == "cut":
            return Evidence(fired=False)
        if not self.continues:
            over = wait_for_kill(trial)
            return Evidence(fired=trial.fired(), when_ms=None if over else trial.elapsed_ms)
        while not trial.payload_runs():
            if ended(trial.supervisor, _STEP_MS):
                return Evidence(fired=False)
        return Evidence(fired=self._damage_all(trial), when_ms=trial.elapsed_ms)

    def between(self, trial: Trial) -> bool:
        """Damage every file that the adapter's name stands for; return whether there was one to damage."""
        if self.continues:
            return True
        if not self._timed:
            return self._damage_all(trial)
        history = history_of(trial.reports())
        number, _, length = self._place.partition(".")
        if history is None:
            return False
        found = [event for event in history.events if event.change == int(number)]
        if not found:
            return False
        if self.damage.startswith("at="):
            return not length or _tear(trial, found[0], int(length))
        return _halve(trial, found[0], kind_of(self.damage))

    def _damage_all(self, trial: Trial) -> bool:
        paths = trial.state_files(self.file)
        # Of many, a link may lead to another one.
        follow = "*" not in self.file and len(paths) == 1
        done = [damage_file(trial, path, self.damage, follow=follow) for path in paths]
        return any(done)


def _tear(trial: Trial, event: Event, length: int) -> bool:
    """Leave only the first bytes of what a change wrote."""
    done = False
    for path, old, new in event.written():
        directory, _, name = path.rpartition("/")
        with trial.directory(directory or "/") as at:
            _rewrite(at, name, torn(old, new, length))
            done = True
    return done


def _halve(trial: Trial, event: Event, how: str) -> bool:
    """Leave half of a rename."""
    for old, new in event.moved:
        if event.files[new].kind != "file":
            continue
        with (
            trial.directory(old.rpartition("/")[0] or "/") as source,
            trial.directory(new.rpartition("/")[0] or "/") as to,
        ):
            if not (keeps_data(source) and keeps_data(to)):
                return False
            was, name = old.rpartition("/")[2], new.rpartition("/")[2]
            replaced = event.before.get(new)
            if how == "undone":
                os.rename(name, was, src_dir_fd=to, dst_dir_fd=source)
                if replaced is not None and replaced.content is not None:
                    _create(to, name, replaced.content, replaced.mode)
            elif how == "both":
                os.link(name, was, src_dir_fd=to, dst_dir_fd=source, follow_symlinks=False)
            else:
                content = event.files[new].content or b""
                _create(source, was, content[: len(content) // 2], event.files[new].mode)
        return True
    return False


def _create(at: int, name: str, content: bytes, mode: int) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
    try:
        _write(file, content)
    finally:
        os.close(file)


def _rewrite(at: int, name: str, content: bytes) -> None:
    file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        if stat.S_ISREG(os.fstat(file).st_mode) and keeps_data(file):
            os.ftruncate(file, 0)
            _write(file, content)
    finally:
        os.close(file)


MOST_BYTES = 64 << 20
"""More of a file is not read, and its content not damaged: such a file is no state file."""
# As many links as the kernel follows (path_resolution(7)).
_MOST_LINKS = 40


def damage_file(trial: Keeps, path: str, damage: str, *, follow: bool = False, directories: bool = False) -> bool:
    """Damage the file at `path`, as commands see it; return whether it changed. With `follow`, it is where links lead.

    What is not a regular file has only damages of its name: a followed link that leads nowhere, and with `directories`
    a directory. A file of the kernel, as in procfs, is never touched: it may be a setting of the machine.
    """
    try:
        path = _followed(trial, path) if follow else path
    except OSError:
        return False
    directory, _, name = path.rpartition("/")
    with trial.directory(directory or "/") as at:
        try:
            place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        except FileNotFoundError:
            return False
        try:
            mode = os.fstat(place).st_mode
            ours = keeps_data(at) and keeps_data(place)
        finally:
            os.close(place)
        named = (follow and stat.S_ISLNK(mode) and damage in places_of("link")) or (
            directories and stat.S_ISDIR(mode) and damage in PLACES
        )
        if not ours or not (stat.S_ISREG(mode) or named):
            # It was damaged already, or is none that can be.
            return False
        if damage == NONE:
            return True
        if damage in PLACES:
            _replace(at, name, damage)
            return True
        return _damage_content(at, name, damage)


def _damage_content(at: int, name: str, damage: str) -> bool:
    file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        size = os.fstat(file).st_size
        content = os.pread(file, size, 0) if size <= MOST_BYTES else None
        if content is None or (new := damaged(content, damage)) is None:
            return False
        os.ftruncate(file, 0)
        _write(file, new)
    finally:
        os.close(file)
    return True


def _followed(trial: Keeps, path: str) -> str:
    """Return where the links of a path lead to inside of the trial's host; the last link if that leads nowhere."""
    last = path
    for _ in range(_MOST_LINKS):
        directory, _, name = path.rpartition("/")
        try:
            with trial.directory(directory or "/") as at:
                if not stat.S_ISLNK(os.lstat(name, dir_fd=at).st_mode):
                    return path
                to = os.readlink(name, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            return last
        last, path = path, to if to.startswith("/") else f"{directory}/{to}"
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), last)


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
        try:
            os.unlink(name, dir_fd=at)
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=at)
        if what == "directory":
            os.mkdir(name, dir_fd=at)
        elif what == "fifo":
            os.mkfifo(name, dir_fd=at)
        elif what in ("dangling", "loop"):
            os.symlink(name if what == "loop" else f"{name}.gone", name, dir_fd=at)
