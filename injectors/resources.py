"""The resources that `injectors.exhaustion` exhausts: each inside the trial's arena, and never outside of it.

A limit is set on what belongs to the arena alone: its file systems, its cgroups, and processes in it. Those of cgroups
are in `injectors.cgroup_limits`.
"""

import contextlib
import os
import re
from typing import Protocol

import psutil

from injectors.filesystems import resize
from injectors.protocol import Limits, Room

__all__ = ["Disk", "Files", "Limit", "read_size"]

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_SIZE = re.compile(r"(\d{1,9})([KMG]?)")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def read_size(text: str) -> int | None:
    """Return the bytes of ``64K``, ``1M`` or ``0``; None if it is no size."""
    found = _SIZE.fullmatch(text)
    return int(found[1]) << _UNITS[found[2]] if found else None


class Limit(Limits, Protocol):
    """One resource of an arena, until it is released."""

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it. `payload` is the payload's process, which is spared, or 0.

        It raises `UnavailableError` or `OSError` if it cannot be here.
        """


class Disk:
    """Every file system in which something can be written has so many bytes left, or inodes."""

    errors: tuple[str, ...] = ("ENOSPC", "EDQUOT")
    lasts = True

    def __init__(self, what: str, left: int) -> None:
        self._inodes, self._left = what == "inodes", left
        self._before: list[tuple[int, int]] = []
        self._sizes: list[tuple[int, int]] = []
        self._fillers: list[int] = []

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it."""
        del payload
        for _, fd in room.file_systems():
            total = self._total(fd)
            if not self._inodes and self._left < _PAGE and not self._used(fd):
                # No limit of a tmpfs is below one page: that one is taken by a file without a name.
                self._fillers.append(filler := os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=fd))
                os.write(filler, b"\0")
            resize(fd, self._option, lambda fd=fd: self._used(fd) + self._room)  # type: ignore[misc]
            self._before.append((fd, total))
        self._sizes = [(fd, self._total(fd)) for fd, _ in self._before]

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against it."""
        for place, fd in room.file_systems():
            # Without what the limit leaves beyond whole pages.
            if self._free(fd) == 0:
                return f"no {'inode' if self._inodes else 'byte'} was left on {place}"
        return ""

    def holds(self, room: Room) -> bool:
        """Return whether it is still in force: nobody has remounted a file system with another size."""
        del room
        return bool(self._before) and all(self._total(fd) == size for fd, size in self._sizes)

    def lift(self, room: Room) -> None:
        """Release it."""
        del room
        before, self._before, self._sizes = self._before, [], []
        for fd, total in before:
            resize(fd, self._option, lambda total=total: total)  # type: ignore[misc]
        for filler in self._fillers:
            os.close(filler)
        self._fillers.clear()

    @property
    def _option(self) -> str:
        return "nr_inodes" if self._inodes else "size"

    @property
    def _room(self) -> int:
        return self._left if self._inodes else self._left // _PAGE * _PAGE

    def _total(self, fd: int) -> int:
        found = os.fstatvfs(fd)
        return found.f_files if self._inodes else found.f_blocks * found.f_bsize

    def _free(self, fd: int) -> int:
        found = os.fstatvfs(fd)
        return found.f_ffree if self._inodes else found.f_bfree

    def _used(self, fd: int) -> int:
        found = os.fstatvfs(fd)
        return found.f_files - found.f_ffree if self._inodes else (found.f_blocks - found.f_bfree) * found.f_bsize


class Files:
    """No process of the target may have a file descriptor of this number or more (RLIMIT_NOFILE, getrlimit(2))."""

    errors: tuple[str, ...] = ("EMFILE", "ENFILE")
    lasts = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._before: list[tuple[psutil.Process, tuple[int, int]]] = []
        self._full = False

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it."""
        for process in room.tree():
            if process.pid != payload:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._full |= process.num_fds() >= self._limit
                    before = process.rlimit(psutil.RLIMIT_NOFILE)
                    # It refuses a process that has another's number.
                    process.rlimit(psutil.RLIMIT_NOFILE, (self._limit, self._limit))
                    self._before.append((process, before))

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against it."""
        del room
        return f"a process had {self._limit} descriptors or more when the limit was set" if self._full else ""

    def holds(self, room: Room) -> bool:
        """Return whether it is still in force."""
        del room
        return bool(self._before)

    def lift(self, room: Room) -> None:
        """Release it."""
        del room
        for process, before in self._before:
            # Who may not raise a limit has to leave it to what runs on, which is residue then.
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.rlimit(psutil.RLIMIT_NOFILE, before)
        self._before.clear()
