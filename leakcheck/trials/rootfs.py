"""Files below another root, opened with openat2(2): no link inside, not even an absolute one, leads out of it."""

import contextlib
import ctypes
import errno
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path, PurePath

# The same number on all our architectures; Python and the C library have no wrapper (linux/openat2.h, Linux 5.6).
_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
# Status files are never larger.
_MOST_BYTES = 1 << 20
_TRIES = 32
# No such name, or one that leads out of the root, or in a circle.
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)


@contextlib.contextmanager
def opened(root: int, path: Path, flags: int, mode: int = 0) -> Generator[int, None, None]:
    """Yield a descriptor of `path` (absolute) below `root`, opened with `flags` (open(2)); raise `OSError`."""
    how = _How(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT)
    for _ in range(_TRIES):
        fd = int(_syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
        # The kernel returns EAGAIN if something was renamed at the same time.
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    try:
        yield fd
    finally:
        os.close(fd)


def make_directory(root: int, path: Path) -> None:
    """Create the directory `path` (absolute) below `root`, unless it exists, with its parents; raise `OSError`."""
    try:
        with opened(root, path, os.O_PATH | os.O_DIRECTORY):
            return
    except FileNotFoundError:
        if path == path.parent:
            raise
    make_directory(root, path.parent)
    with opened(root, path.parent, os.O_PATH | os.O_DIRECTORY) as parent, contextlib.suppress(FileExistsError):
        os.mkdir(path.name, dir_fd=parent)


def write_file(root: int, path: Path, content: bytes, *, executable: bool = False) -> None:
    """Write `content` to the absolute `path` below `root`, and create its directories; raise `OSError`.

    With `executable`, everybody may execute it.
    """
    make_directory(root, path.parent)
    # Do not block on a FIFO that somebody put there.
    with opened(root, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644) as fd:
        _check_regular(fd, path)
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        if executable:
            os.fchmod(fd, 0o755)


def read_file(root: int, path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of the file at the absolute `path` below `root`, at most 1 MiB or `most`; raise `OSError`."""
    with opened(root, path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        _check_regular(fd, path)
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)


def find(root: int, pattern: str) -> Iterator[Path]:
    """Yield the paths below `root` that an absolute `pattern` stands for, in which ``*`` is any part of a name."""
    found = [Path("/")]
    for part in PurePath(pattern).parts[1:]:
        found = [path / name for path in found for name in _names(root, path, part)]
    yield from found


def _names(root: int, directory: Path, part: str) -> list[str]:
    try:
        # In a name without "*" nothing is special.
        if "*" not in part:
            with opened(root, directory / part, os.O_PATH | os.O_NOFOLLOW):
                return [part]
        with opened(root, directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            name = re.compile(".*".join(map(re.escape, part.split("*"))), re.DOTALL)
            return sorted(one for one in os.listdir(fd) if name.fullmatch(one))  # noqa: PTH208 (no Path is one of a descriptor)
    except OSError as error:
        if error.errno not in _LEADS_NOWHERE:
            raise
    return []


def _check_regular(fd: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
