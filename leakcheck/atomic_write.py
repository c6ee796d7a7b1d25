"""Write a result file atomically, exactly where the user asked for it.

The guarded program may be hostile and runs before the write. So the directory is opened before the run, and links that
somebody else could have made are not followed.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import select
import stat
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Self

from leakcheck.errors import UsageError

_MOST_LINKS = 40
"""As the kernel follows (path_resolution(7))."""
_PATIENCE = 10
"""Seconds to wait for a reader to open a FIFO or to read from it."""
_DESCRIPTOR = r"/(?:dev/fd|proc/(?:self|thread-self|{pid})/fd)/(\d+)"
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


class Output:
    """An output file for one result, opened before the run that the result describes.

    A file is replaced atomically, in the directory that was opened. A file that somebody else made there stays, and so
    does whatever appeared there since, unless it is our file. Descriptors, devices and FIFOs are written to.

    Raises:
        UsageError: the path cannot be written; the message has the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = self._special = -1
        self._name = ""
        self._there: tuple[int, int] | None = None
        with self._naming():
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for descriptor in (self._directory, self._special):
            if descriptor >= 0:
                os.close(descriptor)
        self._directory = self._special = -1

    @property
    def replaceable(self) -> bool:
        """Whether each `save` replaces what the one before wrote: it is a file, nothing that a reader reads once."""
        return self._special < 0

    def save(self, text: str) -> None:
        """Write `text` and a newline.

        The new file has no name until it is complete (O_TMPFILE, open(2), Linux 3.11), so that a kill leaves no file.

        Raises:
            UsageError: it cannot be written, or the file that exists now is not ours to replace.
        """
        data = (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")
        with self._naming():
            if self._special >= 0:
                _write_to(self._special, data)
                return
            self._replace(data)
            # A directory that may be searched but not read cannot be synced.
            with contextlib.suppress(PermissionError):
                directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            self._check_place()

    def _open(self) -> None:
        absolute = os.path.normpath(self.path.absolute())
        own = re.fullmatch(_DESCRIPTOR.format(pid=os.getpid()), absolute)
        if own is not None or absolute in _STREAMS:
            number = int(own[1]) if own is not None else _STREAMS[absolute]
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "is not open for writing")
            self._special = os.dup(number)
            return
        self._directory, self._name = _walk(self.path)
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None:
            self._check_old(found)
        if self._special < 0:
            self._try_draft()

    def _check_old(self, found: os.stat_result) -> None:
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it")
        shared = os.fstat(self._directory).st_mode & (stat.S_ISVTX | stat.S_IWOTH)
        if shared and found.st_uid not in (0, os.geteuid()):
            why = f"is {_type(found)} of uid {found.st_uid}, in a directory that others can write"
            raise PermissionError(errno.EPERM, why)
        if stat.S_ISREG(found.st_mode):
            self._there = (found.st_dev, found.st_ino)
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode):
            self._special = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        else:
            raise OSError(errno.EINVAL, f"is {_type(found)}; name a file")

    def _try_draft(self) -> None:
        # access(2) permits it, but /proc still refuses.
        try:
            file, draft = _draft(self._directory, self._name)
        except OSError as error:
            where = Path(f"/proc/self/fd/{self._directory}").readlink()
            raise OSError(error.errno, f"cannot make a file in {where}: {os.strerror(error.errno or 0)}") from error
        os.close(file)
        if draft is not None:
            os.unlink(draft, dir_fd=self._directory)

    def _replace(self, data: bytes) -> None:
        if os.fstat(self._directory).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "its directory was removed during the run")
        file, own = _draft(self._directory, self._name)
        named, draft = own is not None, own or _draft_name(self._name)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(file)
                if not named:
                    link = f"/proc/self/fd/{file}"
                    with contextlib.suppress(FileExistsError):
                        os.link(link, self._name, dst_dir_fd=self._directory, follow_symlinks=True)
                        return
                    self._check_replaceable()
                    os.link(link, draft, dst_dir_fd=self._directory, follow_symlinks=True)
                    named = True
            self._check_replaceable()
            os.rename(draft, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            named = False
        finally:
            if named:
                os.unlink(draft, dir_fd=self._directory)

    def _check_replaceable(self) -> None:
        try:
            now = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        ours = stat.S_ISREG(now.st_mode) and now.st_uid == os.geteuid()
        if not ours and (now.st_dev, now.st_ino) != self._there:
            raise FileExistsError(errno.EEXIST, f"{_type(now)} of uid {now.st_uid} appeared there since; it stays")

    def _check_place(self) -> None:
        # The file is in the directory that was opened; check that the path still leads there.
        held = os.fstat(self._directory)
        with contextlib.suppress(OSError):
            now, name = _walk(self.path)
            there = os.fstat(now)
            os.close(now)
            if (there.st_dev, there.st_ino, name) == (held.st_dev, held.st_ino, self._name):
                return
        where = Path(f"/proc/self/fd/{self._directory}").readlink()
        raise OSError(errno.ESTALE, f"its directory was moved or replaced during the run; the result is in {where}")

    @contextlib.contextmanager
    def _naming(self) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"write {self.path}: {why[:1].lower()}{why[1:]}") from error


@contextlib.contextmanager
def held_directory(path: Path) -> Generator[tuple[int, str], None, None]:
    """Yield an O_PATH descriptor of the directory that holds the file at `path`, and the file's name there.

    No symbolic link of another user is followed; it raises `OSError` instead.
    """
    directory, name = _walk(path)
    try:
        yield directory, name
    finally:
        os.close(directory)


def _walk(path: Path) -> tuple[int, str]:
    """Open the directory that holds the file at `path`; return it and the file's name there.

    A symbolic link is followed only if it is ours or root's: the maker of any other link chose its target.
    """
    absolute = path.absolute()
    names = deque(absolute.parts[1:])
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open("/", flags)
    links = 0
    try:
        while names:
            name = names.popleft()
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                if names:
                    raise
                return directory, name
            if stat.S_ISLNK(found.st_mode):
                if found.st_uid not in (0, os.geteuid()):
                    raise PermissionError(errno.EPERM, f"{name} is a symbolic link of uid {found.st_uid}: not followed")
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                leads = os.readlink(name, dir_fd=directory)
                if leads.startswith("/"):
                    directory = _instead(directory, os.open("/", flags))
                names.extendleft(reversed([part for part in leads.split("/") if part not in ("", ".")]))
            elif names or name == "..":
                directory = _instead(directory, os.open(name, flags, dir_fd=directory))
            else:
                return directory, name
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it")
    except (FileNotFoundError, NotADirectoryError) as error:
        os.close(directory)
        raise NotADirectoryError(errno.ENOTDIR, f"no directory {path.parent}; create it first") from error
    except BaseException:
        os.close(directory)
        raise


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new


def _draft(directory: int, name: str) -> tuple[int, str | None]:
    """Return a new file in `directory`, open for writing, and its temporary name if it needs one."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory), None
    except OSError as error:
        # NFS, FUSE and old overlays have no O_TMPFILE.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    draft = _draft_name(name)
    return os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory), draft


def _draft_name(name: str) -> str:
    # A name is at most 255 bytes, which may be any bytes.
    return os.fsdecode(b".%b.%b" % (os.fsencode(name)[:200], secrets.token_hex(4).encode()))


def _write_to(special: int, data: bytes) -> None:
    """Write to something other than a regular file, with a bounded wait for a reader."""
    flags = fcntl.fcntl(special, fcntl.F_GETFL)
    stream = _open_held(special) if flags & os.O_PATH else os.dup(special)
    try:
        ready = select.poll()
        ready.register(stream, select.POLLOUT)
        view = memoryview(data)
        while view:
            if not ready.poll(_PATIENCE * 1000):
                raise OSError(errno.EAGAIN, f"no reader read from it for {_PATIENCE} s")
            # A writable pipe takes this much without blocking (pipe(7), PIPE_BUF).
            view = view[os.write(stream, view[: select.PIPE_BUF]) :]
    finally:
        os.close(stream)


def _open_held(special: int) -> int:
    """Open the file behind an O_PATH descriptor; retry for some time while a FIFO has no reader."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{special}", flags)
        except OSError as error:
            # There is no event for a new reader: its open(), which inotify(7) would report, returns only when a writer
            # opens too (fifo(7)), and a writer that blocks in open() cannot be given a time limit.
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError(errno.ENXIO, f"no reader opened it within {_PATIENCE} s") from error
            time.sleep(0.01)


def _type(found: os.stat_result) -> str:
    names = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a device",
    }
    return names.get(stat.S_IFMT(found.st_mode), "a file of unknown type")
