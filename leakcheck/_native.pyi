"""Native core of leakcheck: observe and judge. Reports cross the boundary as JSON text."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, final

__all__ = [
    "DEFAULT_ROOTS",
    "KINDS",
    "OPERATIONS",
    "ArenaView",
    "Guard",
    "Remembered",
    "Settings",
    "Snapshot",
    "__version__",
    "build_id",
    "check_allow",
    "diff",
    "doctor",
    "environment",
    "harmless",
    "parse_plan",
    "path_class",
    "read_input",
    "reap",
    "settle",
    "snapshot",
    "walk_stack",
]

__version__: str
KINDS: tuple[str, ...]
OPERATIONS: tuple[str, ...]
DEFAULT_ROOTS: tuple[str, ...]

@final
class Snapshot:
    """One observation; immutable."""

    @property
    def scope(self) -> str: ...
    @property
    def kinds(self) -> list[str]: ...
    @property
    def boot_id(self) -> str: ...
    @property
    def taken_ns(self) -> int: ...
    @property
    def took_ns(self) -> int: ...
    @property
    def coverage(self) -> dict[str, tuple[str, str]]: ...
    @property
    def unreadable(self) -> list[tuple[int, str]]: ...
    @property
    def gauges(self) -> dict[str, int]: ...
    def __len__(self) -> int: ...
    def count(self, kind: str) -> int: ...
    def resources(self, kind: str | None = None) -> list[dict[str, Any]]: ...
    def to_json(self) -> str: ...
    def save(self, path: str) -> None: ...
    @staticmethod
    def from_json(text: str) -> Snapshot: ...
    @staticmethod
    def load(path: str) -> Snapshot: ...

@final
class Settings:
    """Settings, read in advance: the next guard of an arena begins with them, as long as this object exists."""

    def __new__(cls) -> Settings: ...

@final
class ArenaView:
    """The view through which an arena is observed from outside. Descriptors are duplicated; paths are those inside it.

    Args:
        proc: the arena's own /proc.
        layers: path, upper layer and lower host directory of each overlay.
        roots: path and root of each fresh file system; after these, path and directory of what mounts cover in them.
        cgroups: hierarchy, as in /proc/PID/cgroup or ``"v2"``, and the host's directory of the arena's cgroup.
        not_covered: submounts of the host that are not observed, with the reason.
        bound: path inside and path on the host of each writable bind; its content is listed now and compared later.
    """

    def __new__(
        cls,
        proc: int,
        layers: Sequence[tuple[str, int, str]],
        roots: Sequence[tuple[str, int]],
        cgroups: Sequence[tuple[str, str]],
        not_covered: Sequence[str] = ...,
        bound: Sequence[tuple[str, str]] = ...,
    ) -> Self: ...

@final
class Remembered:
    """What a session's looks and guards share: listings of directories that did not change, and a watch."""

    def __new__(cls) -> Self: ...
    def close(self) -> None:
        """Close what watches the machine for guards, unless one of them runs."""

@final
class Guard:
    """A run: baseline and event sources at construction, settle and verdict at the end."""

    def __new__(
        cls,
        *,
        scope: str = "host",
        kinds: str | None = None,
        roots: Sequence[str] | None = None,
        lock_files: Sequence[str] = ...,
        allow: str | None = None,
        settle_ms: int = 500,
        include_self: bool = False,
        attributed_only: bool = False,
        remembered: Remembered | None = None,
        arena: ArenaView | None = None,
    ) -> Self: ...
    @property
    def token(self) -> tuple[str, str]: ...
    def allow(self, text: str) -> None: ...
    def end(self, argv: Sequence[str] | None = None, exit: int | None = None) -> str: ...
    def forget(self, descriptors: Sequence[int]) -> None: ...
    def end_at_once(self) -> str | None: ...
    def recovered(self) -> str: ...
    def abandon(self) -> None: ...

def snapshot(
    *,
    scope: str = "host",
    kinds: str | None = None,
    roots: Sequence[str] | None = None,
    lock_files: Sequence[str] = ...,
    threads: int = 0,
    include_self: bool = False,
    remembered: Remembered | None = None,
    arena: ArenaView | None = None,
) -> Snapshot: ...
def diff(before: Snapshot, after: Snapshot, *, allow: str | None = None) -> str: ...
def settle(
    before: Snapshot,
    *,
    first: Snapshot | None = None,
    allow: str | None = None,
    settle_ms: int = 500,
    include_self: bool = False,
    attributed_only: bool = False,
    waiting: Callable[[], object] | None = None,
) -> str:
    """Settle and judge what is not in `before`; `replaces` refers to `first`, the first of several baselines.

    `waiting` is called before each wait, once 20 ms are over.
    """

def check_allow(text: str, path: str) -> int: ...
def environment(pid: int, *, arena: ArenaView | None = None) -> bytes | None:
    """Return the environment of a process, by its number in `arena`; None if it cannot be read within a second."""

def path_class(path: str) -> Literal["nothing", "directory", "other", "hidden"]: ...
def doctor(*, scope: str = "host", kinds: str | None = None, roots: Sequence[str] | None = None) -> str: ...
def read_input(what: str, path: str | os.PathLike[str], *, most: int = ..., own: bool = False) -> str:
    """Read a text file or pipe that a user names, bounded in size and time; with `own`, no other user can write it."""

def harmless(text: str) -> str:
    r"""Return `text` with one character of each CI runner command written as ``\xNN``."""

def parse_plan(line: str) -> tuple[str, str, list[str]]:
    """Parse the fault plan ``KIND[:ARGUMENT][,FLAG]`` into kind, argument, flags; raise `UsageError` if wrong."""

def reap(report: str, path: str, *, apply: bool = False) -> str: ...
def build_id(file: bytes) -> str | None:
    """Return the number by which the debug file of a program is found."""

def walk_stack(
    registers: tuple[int, int, int], stack: bytes, mappings: Sequence[tuple[int, int, int, bytes, bytes]]
) -> list[tuple[int | None, int, str | None]]:
    """Return the functions that have not returned, the innermost first: mapping, address in its file, name.

    `registers` are ``rip``, ``rsp`` and ``rbp``, `stack` the bytes from ``rsp`` on; a mapping has start, end, offset
    in its file, and the contents of the file and of its debug file, empty if they are not known.
    """
