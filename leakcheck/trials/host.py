"""Where a trial takes place: a host of its own, be it an arena or the live one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import psutil

from injectors import Supervisor
from leakcheck import _native
from leakcheck.report import Leak, Report

__all__ = ["ENV", "KINDS", "Host", "Running"]

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# What no namespace isolates no trial can be blamed for: it is observed around the whole campaign.
KINDS = ",".join(kind for kind in _native.KINDS if kind not in ("lockfile", "sysctl"))


class Running(Supervisor, Protocol):
    """A started command."""

    pid: int
    cpu: float | None
    """Seconds of processor time that it took with all that it waited for, once it has ended; None: not known."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, -N for signal N; raise `subprocess.TimeoutExpired`."""

    def close(self) -> None:
        """Close its descriptors."""


class Host(Protocol):
    """One host for one trial."""

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

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
