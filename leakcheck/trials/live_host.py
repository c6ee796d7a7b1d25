"""The live host: the machine itself, where only what is tied to the run counts."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from injectors import Room
from leakcheck import _native
from leakcheck.arena import Trace
from leakcheck.errors import TargetError, UsageError
from leakcheck.report import Leak, Report
from leakcheck.subprocesses import why_not_run
from leakcheck.trials.host import ENV, KINDS, Running


class LiveHost:
    """The host: only what is tied to the run counts."""

    apart = False

    def __init__(self, settle: float) -> None:
        self._settle_ms = round(settle * 1000)
        self._guard: _native.Guard | None = None
        self._ended = False
        self._token: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._base = Path(tempfile.mkdtemp(prefix="leakcheck-campaign-", dir=_host_directory()))
        self.work = self._base / "box"
        self.work.mkdir()
        # Others may traverse it, as a target's own users must.
        self._base.chmod(0o755)
        descriptor, marker = tempfile.mkstemp(prefix="leakcheck-marker-", dir="/tmp")
        os.close(descriptor)
        self.marker = Path(marker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.abandon()
        # Files below a leaked mount are not ours to remove: then the directory stays, and is in the report.
        if not any(part.mountpoint.startswith(str(self._base)) for part in psutil.disk_partitions(all=True)):
            shutil.rmtree(self._base, ignore_errors=True)
        self.marker.unlink(missing_ok=True)

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], output: int, cwd: str = "/", trace: Trace | None = None
    ) -> Running:
        """Start a command in a new session; on the live host none is traced."""
        if trace is not None:
            raise UsageError("crash points exist in arenas only; omit --host")
        return _Process(argv, ENV | self._token | dict(env), output, cwd)

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and its descendants."""
        return descendants(supervisor)

    def read(self, path: Path) -> bytes:
        """Return the content of the file."""
        return path.read_bytes()

    def environment(self, pid: int) -> bytes:
        """Return the environment of the process."""
        return _native.environment(pid) or b""

    def write(self, path: Path, content: bytes, *, executable: bool = False) -> None:
        """Write the file; everybody may execute it if it is `executable`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if executable:
            path.chmod(0o755)

    @property
    def root(self) -> int:
        """Raise `UsageError`: nothing below the host's own root is damaged on purpose."""
        raise UsageError("--host: the state files of the live host are not damaged; omit it")

    def room(self) -> Room:
        """Raise `UsageError`: nothing of the live host may be exhausted."""
        raise UsageError("resources are exhausted in arenas only")

    def begin(self) -> None:
        """Take the baseline, and watch who makes what."""
        roots = [*_native.DEFAULT_ROOTS, str(self._base)]
        self._guard = _native.Guard(kinds=KINDS, settle_ms=self._settle_ms, attributed_only=True, roots=roots)
        name, value = self._guard.token
        self._token = {name: value}

    def damaged_before(self) -> list[str]:
        """Return nothing: on the live host only new resources are observed."""
        return []

    def observe(self) -> Report:
        """Settle; from the second call on, drop the first residue that has gone, and add what is new."""
        assert self._guard is not None  # noqa: S101 - `begin` comes first
        text = self._guard.recovered() if self._ended else self._guard.end()
        self._ended = True
        report = Report.from_json(text)
        left = [leak for leak in report.leaks if leak.class_ != "reclaimable"]
        return msgspec.structs.replace(report, leaks=left)

    def end_state(self) -> Mapping[str, int]:
        """Return nothing: the host is not the trial's."""
        return {}

    def replaced(self) -> set[str]:
        """Return nothing: the baseline is taken after the preparation."""
        return set()

    def mark(self, *, as_before: bool = False) -> None:
        """Observe only: the guard has just one baseline, and others may have changed something."""
        del as_before
        self._marked = {leak.key for leak in self.observe().leaks}

    def observe_since_mark(self) -> list[Leak]:
        """Observe again, without what the last observation showed."""
        return [leak for leak in self.observe().leaks if leak.key not in self._marked]


def descendants(process: Running) -> set[psutil.Process]:
    """Return `process` and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        return {top, *top.children(recursive=True)}
    return set()


def _host_directory() -> Path:
    """Return the parent directory of boxes: the system's state directory, or if it is not writable the user's."""
    own = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    if os.access("/var/lib", os.W_OK):
        return Path("/var/lib")
    own.mkdir(parents=True, exist_ok=True)
    return own


class _Process(subprocess.Popen[bytes]):
    cpu: float | None = None

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: int, cwd: str) -> None:
        try:
            null = subprocess.DEVNULL
            super().__init__(argv, env=env, cwd=cwd, stdin=null, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise TargetError(f"run {argv[0]}: {why_not_run(argv[0], error)}") from error
        self.pidfd = os.pidfd_open(self.pid)
        self.inside = self.pid

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
