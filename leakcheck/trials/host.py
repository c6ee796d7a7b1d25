"""Where a trial takes place: in an arena, or on the host itself. Both run commands, hold files, and look."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec
import psutil

from leakcheck import _native
from leakcheck.arena import Arena, look_soon
from leakcheck.errors import TargetError
from leakcheck.report import Leak, Report
from leakcheck.subprocesses import why_not_run
from leakcheck.targets import Target
from leakcheck.targets.executables import binds
from leakcheck.trials.rootfs import make_directory, read_file, write_file
from leakcheck.trials.similarity import place_of

__all__ = ["ArenaHost", "Host", "LiveHost", "Running", "kill"]

_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# Of what no namespace isolates a trial says nothing: that is looked at around the whole campaign.
_KINDS = ",".join(kind for kind in _native.KINDS if kind not in ("lockfile", "sysctl"))
# Kinds of which a new one may be where another was before.
_PLACED = {"file": "path", "lockfile": "path", "cgroup": "path", "mount": "target"}


class Running(Protocol):
    """A started command."""

    pid: int
    cpu: float | None
    """Seconds of processor time that it took with all that it waited for, once it has ended; None: not known."""

    @property
    def pidfd(self) -> int:
        """Its descriptor."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, -N for signal N; raise `subprocess.TimeoutExpired`."""

    def send_signal(self, number: int) -> None:
        """Send a signal."""

    def close(self) -> None:
        """Close its descriptors."""


class Host(Protocol):
    """One disposable place for one trial."""

    work: Path
    """The box's directory, as commands see it. Sandboxes cover or refuse ``/tmp``, so it is not below that."""
    marker: Path
    """A file of the outside that a target may be asked to hide."""

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command with nothing to read, which writes to `output`."""

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and all that it started."""

    def read(self, path: Path) -> bytes:
        """Return what is in the file that commands see at `path`; raise `OSError`."""

    def write(self, path: Path, content: bytes) -> None:
        """Write the file that commands see at `path`, and make its directories; raise `OSError`."""

    def begin(self) -> None:
        """Take the baseline."""

    def damaged_before(self) -> list[str]:
        """Return what of the host's files was changed or removed before the baseline, the target's own apart."""

    def look(self) -> Report:
        """Settle, and return what is left of all since the baseline."""

    def mark(self) -> None:
        """Take a second baseline."""

    def look_since_mark(self) -> list[Leak]:
        """Settle, and return what is there that was not at the second baseline."""

    def replaced(self, leaks: Sequence[Leak]) -> set[str]:
        """Return the keys of those `leaks` in whose place there was another at the baseline."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ArenaHost:
    """An arena: whatever is there afterwards is the trial's. Beyond the target's programs it shows what is `needed`."""

    work = Path("/var/lib/leakcheck-campaign/box")
    marker = Path("/tmp/leakcheck-marker")  # noqa: S108 - the arena's own

    def __init__(self, target: Target, settle: float, needed: Sequence[str | os.PathLike[str]] = ()) -> None:
        self._target = target
        shown = [path for path in target.found().values() if path]
        self._arena = Arena(hostname="arena", binds=binds([*shown, *needed]))
        self._settle_ms = round(settle * 1000)
        self._root = -1

    def __enter__(self) -> Self:
        self._looked = look_soon()
        try:
            self._arena.up()
            self._root = os.open(f"/proc/{self._arena.init}/root", os.O_PATH | os.O_DIRECTORY)
            make_directory(self._root, self.work)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looked()
        # Before the arena goes: its file systems live as long as somebody holds them.
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        self._arena.down()

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command in the arena."""
        return self._arena.popen(argv, env=_ENV | dict(env), stdout=output, stderr=output)

    def pids(self) -> set[int]:
        """Return the host's process ids of all that runs in it."""
        return self._arena.pids()

    def make_directory(self, path: Path) -> None:
        """Make the arena's directory `path`, and those that it is in."""
        make_directory(self._root, path)

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return all that runs in the arena."""
        del supervisor
        found = set()
        for pid in self._arena.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(pid))
        # A number may have become another's before it was looked up.
        still = self._arena.pids()
        return {process for process in found if process.pid in still}

    def read(self, path: Path) -> bytes:
        """Return what is in the arena's file."""
        return read_file(self._root, path)

    def write(self, path: Path, content: bytes) -> None:
        """Write the arena's file, wherever links in the arena lead."""
        write_file(self._root, path, content)

    def begin(self) -> None:
        """Take the baseline of the whole arena."""
        self._before = _native.snapshot(kinds=_KINDS, arena=self._arena.view)
        self._looked()

    def damaged_before(self) -> list[str]:
        """Return what the overlay shows as changed or deleted in the baseline already."""
        files = [one for one in self._before.resources("file") if one.get("state") in ("changed", "deleted")]
        return [f"{one['state']} {one['class']} {one['path']}" for one in files if not self._target.owns(one["path"])]

    def look(self) -> Report:
        """Settle, and return what is there that was not; what nothing ties to the arena is set apart."""
        return self._since(self._before)

    def mark(self) -> None:
        """Take a second baseline of the whole arena."""
        self._marked = _native.snapshot(kinds=_KINDS, arena=self._arena.view)

    def look_since_mark(self) -> list[Leak]:
        """Settle, and return what is there that was not at the second baseline."""
        return self._since(self._marked).leaks

    def replaced(self, leaks: Sequence[Leak]) -> set[str]:
        """Return the keys of those in whose place there are no more than there were."""
        return (
            _replaced(leaks, self._before, _native.snapshot(kinds=_KINDS, arena=self._arena.view)) if leaks else set()
        )

    def _since(self, before: _native.Snapshot) -> Report:
        report = Report.from_json(_native.settle(before, settle_ms=self._settle_ms))
        tied = [leak for leak in report.leaks if leak.attribution != "none"]
        untied = [leak for leak in report.leaks if leak.attribution == "none"]
        tied = [self._own(leak) for leak in tied]
        return msgspec.structs.replace(report, leaks=tied, unattributed=[*report.unattributed, *untied])

    def _own(self, leak: Leak) -> Leak:
        """Return `leak`, which is no damage where the target changed what is its own."""
        own = leak.class_ == "damaged" and leak.kind == "file" and self._target.owns(place_of(leak))
        return msgspec.structs.replace(leak, class_="orphaned") if own else leak


class LiveHost:
    """The host: only what is tied to the run counts."""

    def __init__(self, target: Target, settle: float) -> None:
        del target
        self._settle_ms = round(settle * 1000)
        self._guard: _native.Guard | None = None
        self._ended = False
        self._token: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._base = Path(tempfile.mkdtemp(prefix="leakcheck-campaign-", dir=_host_directory()))
        self.work = self._base / "box"
        self.work.mkdir()
        # Others may go through, as a target's own users must.
        self._base.chmod(0o755)
        descriptor, marker = tempfile.mkstemp(prefix="leakcheck-marker-", dir="/tmp")
        os.close(descriptor)
        self.marker = Path(marker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._guard is not None:
            self._guard.abandon()
        # What a leaked mount shows below it is not ours to remove: then the directory stays, and is in the report.
        if not any(part.mountpoint.startswith(str(self._base)) for part in psutil.disk_partitions(all=True)):
            shutil.rmtree(self._base, ignore_errors=True)
        self.marker.unlink(missing_ok=True)

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> Running:
        """Start a command in a session of its own."""
        return _HostProcess(argv, _ENV | self._token | dict(env), output)

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and its descendants."""
        assert isinstance(supervisor, _HostProcess)  # noqa: S101 - `start` made it
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(supervisor.pid)
            return {top, *top.children(recursive=True)}
        return set()

    def read(self, path: Path) -> bytes:
        """Return what is in the file."""
        return path.read_bytes()

    def write(self, path: Path, content: bytes) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def begin(self) -> None:
        """Take the baseline, and watch who makes what."""
        roots = [*_native.DEFAULT_ROOTS, str(self._base)]
        self._before = _native.snapshot(kinds=",".join(_PLACED), roots=roots)
        self._guard = _native.Guard(kinds=_KINDS, settle_ms=self._settle_ms, attributed_only=True, roots=roots)
        name, value = self._guard.token
        self._token = {name: value}

    def damaged_before(self) -> list[str]:
        """Return nothing: on the host only what is new is seen."""
        return []

    def look(self) -> Report:
        """Settle; from the second time on what of the first residue went is left out, and what came is added."""
        assert self._guard is not None  # noqa: S101 - `begin` comes first
        text = self._guard.recovered() if self._ended else self._guard.end()
        self._ended = True
        return _without_reclaimed(Report.from_json(text))

    def mark(self) -> None:
        """Look, as the guard has one baseline."""
        self._marked = {leak.key for leak in self.look().leaks}

    def look_since_mark(self) -> list[Leak]:
        """Look again, and leave out what the last look showed."""
        return [leak for leak in self.look().leaks if leak.key not in self._marked]

    def replaced(self, leaks: Sequence[Leak]) -> set[str]:
        """Return the keys of those in whose place there are no more than there were."""
        if not leaks:
            return set()
        roots = [*_native.DEFAULT_ROOTS, str(self._base)]
        return _replaced(leaks, self._before, _native.snapshot(kinds=",".join(_PLACED), roots=roots))


def _host_directory() -> Path:
    """Return where boxes on the host lie: in a directory for such state, the user's own where it is not root."""
    own = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    if os.access("/var/lib", os.W_OK):
        return Path("/var/lib")
    own.mkdir(parents=True, exist_ok=True)
    return own


class _HostProcess:
    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> None:
        try:
            self._process = subprocess.Popen(
                argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise TargetError(f"run {argv[0]}: {why_not_run(argv[0], error)}") from error
        self.pid = self._process.pid
        self.cpu: float | None = None
        self.pidfd = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(timeout)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def kill(host: Host, supervisor: Running, how: str) -> None:
    """Kill the supervisor alone, or the whole tree, stopped first if `how` is ``"freeze"``."""
    if how == "supervisor":
        supervisor.send_signal(signal.SIGKILL)
        return
    held: dict[psutil.Process, int] = {}
    try:
        for number in (signal.SIGSTOP, signal.SIGKILL) if how == "freeze" else (signal.SIGKILL,):
            _signal_all(host, supervisor, number, held)
    finally:
        for pidfd in held.values():
            os.close(pidfd)


def _signal_all(host: Host, supervisor: Running, number: int, held: dict[psutil.Process, int]) -> None:
    """Signal all of `held` and of the tree, and hold these: an orphan is no longer in its supervisor's tree."""
    told: set[psutil.Process] = set()
    # What is being forked meanwhile is found the next time; a fork bomb could go on, so there is an end to it.
    until = time.monotonic() + 1
    while time.monotonic() < until:
        while _hold(host.tree(supervisor) - held.keys(), held) and time.monotonic() < until:
            pass
        if not (new := held.keys() - told):
            return
        for process in new:
            told.add(process)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[process], number)


def _hold(processes: Iterable[psutil.Process], held: dict[psutil.Process, int]) -> bool:
    """Open a descriptor of each of `processes` that still runs; tell whether there was one."""
    before = len(held)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid)
            # By its start time: the number may have become another's before the descriptor was there.
            if process.pid > 1 and process.is_running():
                held[process] = pidfd
            else:
                os.close(pidfd)
    return len(held) > before


def _replaced(leaks: Sequence[Leak], before: _native.Snapshot, now: _native.Snapshot) -> set[str]:
    kinds = {leak.kind for leak in leaks} & _PLACED.keys()
    there, here = ({kind: _places(one, kind) for kind in kinds} for one in (before, now))
    found = set()
    for leak in leaks:
        # Something was there at the baseline, but it was the host's.
        if leak.kind in kinds and leak.class_ != "damaged":
            place = leak.evidence.get("resource", {}).get(_PLACED[leak.kind])
            if place is not None and here[leak.kind][place] <= there[leak.kind][place]:
                found.add(leak.key)
    return found


def _places(snapshot: _native.Snapshot, kind: str) -> Counter[object]:
    return Counter(resource.get(_PLACED[kind]) for resource in snapshot.resources(kind))


def _without_reclaimed(report: Report) -> Report:
    left = [leak for leak in report.leaks if leak.class_ != "reclaimable"]
    return msgspec.structs.replace(report, leaks=left)
