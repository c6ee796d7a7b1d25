"""Where a trial takes place: in an arena, or on the host itself. Both run commands, hold files, and look."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec
import psutil

from leakcheck import _native
from leakcheck.arena import Arena
from leakcheck.report import Report
from leakcheck.targets import Target
from leakcheck.targets.executables import places

__all__ = ["ArenaPlace", "HostPlace", "Place", "Running", "kill"]

_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# What an arena has anew, so that what the host has there is out of sight.
_FRESH = ("/tmp", "/run", "/var/tmp", "/dev/shm")  # noqa: S108 - names to compare with, nothing is made there


class Running(Protocol):
    """A started command."""

    @property
    def pidfd(self) -> int:
        """Its descriptor."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, -N for signal N; raise `subprocess.TimeoutExpired`."""

    def send_signal(self, number: int) -> None:
        """Send a signal."""


class Place(Protocol):
    """One disposable place for one trial."""

    work: Path
    """The box's directory, as commands see it."""

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command with nothing to read, which writes to `output`."""

    def tree(self, supervisor: Running) -> set[int]:
        """Return the host's ids of the supervisor and of all that it started."""

    def path(self, path: Path) -> Path:
        """Return where from outside the file is that commands see at `path`."""

    def begin(self) -> None:
        """Take the baseline."""

    def look(self) -> Report:
        """Settle, and return what is left of all since the baseline."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArenaPlace:
    """An arena: whatever is there afterwards is the trial's."""

    work = Path("/tmp/leakcheck/box")  # noqa: S108 - the arena's own

    def __init__(self, target: Target, settle: float) -> None:
        self._arena = Arena(hostname="arena", binds=_binds(target))
        self._settle_ms = round(settle * 1000)

    def __enter__(self) -> Self:
        self._arena.up()
        self.path(self.work).mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arena.down()

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command in the arena."""
        return self._arena.popen(argv, env=_ENV | dict(env), stdout=output, stderr=output)

    def tree(self, supervisor: Running) -> set[int]:
        """Return all that runs in the arena."""
        del supervisor
        return self._arena.pids()

    def path(self, path: Path) -> Path:
        """Return the path through the arena's root."""
        return Path(f"/proc/{self._arena.init}/root") / path.relative_to("/")

    def begin(self) -> None:
        """Take the baseline of the whole arena."""
        self._before = _native.snapshot(arena=self._arena.view)

    def look(self) -> Report:
        """Settle, and return what is there that was not; what nothing ties to the arena is set apart."""
        report = Report.from_json(_native.settle(self._before, settle_ms=self._settle_ms))
        tied = [leak for leak in report.leaks if leak.attribution != "none"]
        untied = [leak for leak in report.leaks if leak.attribution == "none"]
        return msgspec.structs.replace(report, leaks=tied, unattributed=[*report.unattributed, *untied])


class HostPlace:
    """The host: only what is tied to the run counts."""

    def __init__(self, target: Target, settle: float) -> None:
        del target
        self._settle_ms = round(settle * 1000)
        self._guard: _native.Guard | None = None
        self._ended = False
        self._token: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._base = Path(tempfile.mkdtemp(prefix="leakcheck-", dir="/tmp"))
        self.work = self._base / "box"
        self.work.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._guard is not None:
            self._guard.abandon()
        # What a leaked mount shows below it is not ours to remove: then the directory stays, and is in the report.
        if not any(part.mountpoint.startswith(str(self._base)) for part in psutil.disk_partitions(all=True)):
            shutil.rmtree(self._base, ignore_errors=True)

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command in a session of its own."""
        return _HostProcess(argv, _ENV | self._token | dict(env), output)

    def tree(self, supervisor: Running) -> set[int]:
        """Return the supervisor and its descendants."""
        assert isinstance(supervisor, _HostProcess)  # noqa: S101 - `start` made it
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(supervisor.pid)
            return {top.pid, *(child.pid for child in top.children(recursive=True))}
        return set()

    def path(self, path: Path) -> Path:
        """Return `path`."""
        return path

    def begin(self) -> None:
        """Take the baseline, and watch who makes what."""
        self._guard = _native.Guard(settle_ms=self._settle_ms, attributed_only=True)
        name, value = self._guard.token
        self._token = {name: value}

    def look(self) -> Report:
        """Settle; from the second time on say what of the first residue is still there."""
        assert self._guard is not None  # noqa: S101 - `begin` comes first
        text = self._guard.recovered() if self._ended else self._guard.end()
        self._ended = True
        return _without_reclaimed(Report.from_json(text))


class _HostProcess:
    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> None:
        self._process = subprocess.Popen(
            argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        code = self._process.wait(timeout)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        return code

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


def kill(place: Place, supervisor: Running, how: str) -> None:
    """Kill the supervisor alone, or the whole tree, stopped first if `how` is ``"freeze"``."""
    if how == "supervisor":
        supervisor.send_signal(signal.SIGKILL)
        return
    if how == "freeze":
        _signal_all(place, supervisor, signal.SIGSTOP)
    _signal_all(place, supervisor, signal.SIGKILL)


def _signal_all(place: Place, supervisor: Running, number: int) -> None:
    # What is being forked meanwhile is found the next time; a fork bomb could go on, so there is an end to it.
    done: set[int] = set()
    until = time.monotonic() + 1
    while (new := place.tree(supervisor) - done) and time.monotonic() < until:
        for pid in new:
            done.add(pid)
            _signal_one(place, supervisor, pid, number)


def _signal_one(place: Place, supervisor: Running, pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            # The number may have become another's before the descriptor was there.
            if pid > 1 and pid in place.tree(supervisor):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _without_reclaimed(report: Report) -> Report:
    left = [leak for leak in report.leaks if leak.class_ != "reclaimable"]
    return msgspec.structs.replace(report, leaks=left)


def _binds(target: Target) -> list[tuple[str, str, bool]]:
    """Return what an arena has to show of the host's temporary directories: where the target's programs are."""
    used = {str(Path(path).parent) for path in target.found().values() if path is not None}
    needed = [Path(place) for place in places() if place in used and place.startswith(_FRESH)]
    return [(str(place.parent), str(place.parent), True) for place in needed]
