"""The host of a trial: an arena or the live host."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import psutil

from injectors import Room, Supervisor
from leakcheck import _native
from leakcheck.arena import Trace
from leakcheck.report import Leak, Report

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# No trial can be blamed for what no namespace isolates: that is observed around the whole campaign.
KINDS = ",".join(kind for kind in _native.KINDS if kind not in ("lockfile", "sysctl"))


class Running(Supervisor, Protocol):
    """A started command."""

    pid: int
    inside: int
    """Its process id as the command itself sees it, which its session has too."""
    cpu: float | None
    """Processor time in seconds, including all children it waited for, once it has ended; None: not known."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, -N for signal N; raise `subprocess.TimeoutExpired`."""

    def close(self) -> None:
        """Close its descriptors."""


class Host(Protocol):
    """One host for one trial."""

    work: Path
    """The box's directory, as commands see it. It is not below ``/tmp``, which sandboxes cover or refuse."""
    marker: Path
    """A file outside the sandbox that a target may have to hide."""

    apart: bool
    """Whether all that is new belongs to the trial."""

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], output: int, cwd: str = "/", trace: Trace | None = None
    ) -> Running:
        """Start a command in the directory `cwd`, with empty stdin, that writes to `output`."""

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and everything that it started."""

    def read(self, path: Path) -> bytes:
        """Return the content of the file that commands see at `path`; raise `OSError`."""

    def environment(self, pid: int) -> bytes:
        """Return the environment of the process that commands know as `pid`; empty if it cannot be read."""

    def write(self, path: Path, content: bytes, *, executable: bool = False) -> None:
        """Write the file that commands see at `path`, and create its directories; raise `OSError`.

        Everybody may execute it if it is `executable`.
        """

    @property
    def root(self) -> int:
        """A descriptor of its root directory; only an arena has one."""

    def room(self) -> Room:
        """Return what of it can be exhausted; only an arena has something."""

    def begin(self) -> None:
        """Take the baseline."""

    def damaged_before(self) -> list[str]:
        """Return the host's files that were changed or removed before the baseline, except the target's own."""

    def observe(self) -> Report:
        """Settle, and return all residue since the baseline."""

    def end_state(self) -> Mapping[str, int]:
        """Return what is there, by other means than the oracle's; empty if all is not the trial's."""

    def replaced(self) -> set[str]:
        """Return the keys of what is in the place of something else of the baseline at this moment."""

    def mark(self, *, as_before: bool = False) -> None:
        """Take a second baseline; `as_before`: nothing has changed since the first one."""

    def observe_since_mark(self) -> list[Leak]:
        """Settle, and return what is new since the second baseline."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
