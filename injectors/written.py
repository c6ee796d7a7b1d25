"""Whether anybody has written to a file since some instant, even if it reads as before (inotify(7))."""

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Written"]

# linux/inotify.h; the flags of inotify_init1(2) are those of open(2).
_IN_MODIFY = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


class Written:
    """Watches `paths` until `close`. Each mount of a control file of a cgroup has the same inode, so none escapes.

    It raises `OSError`, as where this user has no instance of inotify left.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        self._seen = False
        try:
            for path in paths:
                _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY), str(path))
        except BaseException:
            os.close(self._fd)
            raise

    def seen(self) -> bool:
        """Return whether somebody has written to one of them, or events were lost."""
        with contextlib.suppress(BlockingIOError):
            self._seen |= bool(os.read(self._fd, 1 << 16))
        return self._seen

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._fd)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
