"""A gate before programs: each start of one waits until somebody has looked (fanotify(7), FAN_OPEN_EXEC_PERM).

The kernel asks before it opens a program to execute it, and holds the process meanwhile: no start, however short what
follows, is without a look. It asks nobody any more once the gate is closed, or whoever has it has died.

A copy is another file, and so is what an interpreter or a loader makes of a program. But whoever makes one opens the
program: the kernel tells of that, and holds nobody.
"""

import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

__all__ = ["Gate", "Start"]

# linux/fanotify.h
_CLOEXEC, _CLASS_CONTENT, _UNLIMITED_QUEUE, _REPORT_PIDFD = 0x1, 0x4, 0x10, 0x80
_MARK_ADD, _MARK_ONLYDIR = 0x1, 0x8
_OPEN, _OPEN_EXEC_PERM, _EVENT_ON_CHILD = 0x20, 0x0004_0000, 0x0800_0000
_ALLOW = 1
_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBHi")
_INFO_PIDFD = 4
# The kernel could make no pidfd, unlike -1: the process has ended.
_NO_PIDFD_MADE = -2
_RESPONSE = struct.Struct("=iI")
_BUFFER = 1 << 16
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)


class Start(NamedTuple):
    """A process that is about to execute the program `name`, and waits; or that has opened it, and does not.

    `pidfd` is -1 if it has just been killed. `inode` is the program, whatever its name is by now: device and number.
    """

    name: str
    pid: int
    pidfd: int
    file: int
    inode: tuple[int, int]
    waits: bool = True


class Gate:
    """A gate before the programs in a `directory`, a descriptor; raise `OSError` if this kernel or user has none.

    Unless it `holds`, it only tells who opens them.
    """

    def __init__(self, directory: int, *, holds: bool = True) -> None:
        self._holds = holds
        flags = _CLOEXEC | _CLASS_CONTENT | _UNLIMITED_QUEUE | _REPORT_PIDFD
        self._fd = _checked(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC), "fanotify_init")
        try:
            self._mark(_MARK_ONLYDIR, _EVENT_ON_CHILD, directory)
        except BaseException:
            os.close(self._fd)
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def _mark(self, flags: int, mask: int, file: int) -> None:
        place = os.fsencode(f"/proc/self/fd/{file}")
        asked = mask | _OPEN | (_OPEN_EXEC_PERM if self._holds else 0)
        _checked(_libc.fanotify_mark(self._fd, _MARK_ADD | flags, asked, _AT_FDCWD, place), "fanotify_mark")

    def follow(self, program: int) -> None:
        """Stand before a program, a descriptor, by each of its names, wherever it is moved or linked to."""
        self._mark(0, 0, program)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def starts(self, seconds: float) -> list[Start]:
        """Return who waits or has come, at the latest after so many seconds; who waits does so until it is let in."""
        return list(_read(os.read(self._fd, _BUFFER))) if self._poll.poll(seconds * 1000) else []

    def admit(self, starts: Iterable[Start]) -> None:
        """Let them in, and close their files; the `pidfd` of each remains the caller's."""
        for start in starts:
            if start.waits:
                os.write(self._fd, _RESPONSE.pack(start.file, _ALLOW))
            os.close(start.file)

    def close(self) -> None:
        """Let everybody in from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read(events: bytes) -> Iterable[Start]:
    at = 0
    while at < len(events):
        length, _, _, head, mask, file, pid = _METADATA.unpack_from(events, at)
        pidfd, info = -1, at + head
        while info < at + length:
            kind, _, size, value = _INFO.unpack_from(events, info)
            if kind == _INFO_PIDFD:
                if value == _NO_PIDFD_MADE:
                    raise OSError(errno.EMFILE, f"no pidfd could be made of process {pid}", "fanotify")
                pidfd = value if value >= 0 else -1
            info += size
        found = os.fstat(file)
        name = Path(f"/proc/self/fd/{file}").readlink().name
        yield Start(name, pid, pidfd, file, (found.st_dev, found.st_ino), bool(mask & _OPEN_EXEC_PERM))
        at += length


def _checked(result: int, call: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), call)
    return result
