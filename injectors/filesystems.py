"""What Python has no call for: the type of a file system (fstatfs(2)), and a change of its size.

The size takes fspick(2) and fsconfig(2), Linux 5.2.
"""

import ctypes
import errno
import os
from collections.abc import Callable

__all__ = ["keeps_data", "resize"]

# The same numbers on all architectures (linux/mount.h).
_FSCONFIG, _FSPICK = 431, 433
_CLOEXEC, _EMPTY_PATH = 0x1, 0x8
_SET_STRING, _RECONFIGURE = 1, 7
# What runs there may take something between two looks.
_TRIES = 64

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# overlayfs, tmpfs, ramfs, ext4, XFS, Btrfs, F2FS (linux/magic.h): what an arena has, and what a target may mount there.
_DATA = {0x794C7630, 0x01021994, 0x858458F6, 0xEF53, 0x58465342, 0x9123683E, 0xF2F52010}
_STATFS_BYTES = 256


def keeps_data(fd: int) -> bool:
    """Return whether the file system of a descriptor keeps what is written to it, and is nothing else: not procfs."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, found) != 0:
        return False
    # f_type is a long, and the first of all (statfs(2)).
    return ctypes.c_long.from_buffer(found).value & 0xFFFF_FFFF in _DATA


def resize(fd: int, option: str, size: Callable[[], int]) -> None:
    """Give the tmpfs of the directory `fd` this ``size`` in bytes, or ``nr_inodes`` (tmpfs(5)).

    `size` is called again whenever more was in use than it returned. It raises `OSError`.
    """
    picked = _pick(fd)
    try:
        for last in range(_TRIES, 0, -1):
            try:
                _call(_FSCONFIG, picked, _SET_STRING, option.encode(), str(size()).encode(), 0)
                _call(_FSCONFIG, picked, _RECONFIGURE, None, None, 0)
            except OSError as error:
                if error.errno != errno.EINVAL or last == 1:
                    raise
                # A context that has failed is used up (fsopen(2)).
                os.close(picked)
                picked = _pick(fd)
            else:
                return
    finally:
        os.close(picked)


def _pick(fd: int) -> int:
    try:
        return _call(_FSPICK, fd, b"", _CLOEXEC | _EMPTY_PATH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # It is not the root of its mount, as the upper layer of an overlay, whose mount is detached.
    return _call(_FSPICK, fd, b"..", _CLOEXEC)


def _call(number: int, *arguments: int | bytes | None) -> int:
    given = [ctypes.c_long(one) if isinstance(one, int) else ctypes.c_char_p(one) for one in arguments]
    result = int(_syscall(ctypes.c_long(number), *given))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "fspick" if number == _FSPICK else "fsconfig")
    return result
