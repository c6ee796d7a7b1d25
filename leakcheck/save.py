"""Write a result file whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Generator
from pathlib import Path

from leakcheck._native import UsageError

__all__ = ["check_writable", "save"]


def check_writable(path: Path) -> None:
    """Raise `UsageError` if a file at `path` could not be written, before anything was run for it.

    It really makes a file in the directory, mostly one without a name: what access(2) permits, /proc still refuses.
    """
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it")
        if _is_special(path):
            return
        parent = path.parent
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"no directory {parent}; create it first")
        # The draft of a file that a symbolic link names lies beside that file.
        directory = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file, draft = _draft(directory, path.name)
            os.close(file)
            if draft is not None:
                os.unlink(draft, dir_fd=directory)
        except OSError as error:
            raise OSError(error.errno, f"cannot make a file in {parent}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(directory)


def save(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` and a newline in one step; a device or FIFO is written to.

    The new file has no name until it is complete (O_TMPFILE, open(2), Linux 3.11), so that a kill leaves none behind.

    Raises:
        UsageError: it cannot be written there.
    """
    data = (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")
    with _naming(path):
        if _is_special(path):
            path.write_bytes(data)
            return
        # The file that a symbolic link names is replaced, not the link.
        target = Path(os.path.realpath(path))
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace(directory, target, data)
            os.fsync(directory)
        finally:
            os.close(directory)


def _draft(directory: int, name: str) -> tuple[int, str | None]:
    """Return a new file in `directory`, open for writing, and its own name if it could not do without."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory), None
    except OSError as error:
        # NFS, FUSE and old overlays have no O_TMPFILE.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    draft = _draft_name(name)
    return os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory), draft


def _draft_name(name: str) -> str:
    return f".{name[:200]}.{secrets.token_hex(4)}"


def _replace(directory: int, target: Path, data: bytes) -> None:
    file, own = _draft(directory, target.name)
    named, draft = own is not None, own or _draft_name(target.name)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
            if not named:
                link = f"/proc/self/fd/{file}"
                with contextlib.suppress(FileExistsError):
                    os.link(link, target.name, dst_dir_fd=directory, follow_symlinks=True)
                    return
                os.link(link, draft, dst_dir_fd=directory, follow_symlinks=True)
                named = True
        os.rename(draft, target.name, src_dir_fd=directory, dst_dir_fd=directory)
        named = False
    finally:
        if named:
            os.unlink(draft, dir_fd=directory)


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"write {path}: {(error.strerror or str(error)).lower()}") from error
