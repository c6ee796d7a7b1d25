"""Finds the configuration file: ``leakcheck.toml``, or ``[tool.leakcheck]`` in ``pyproject.toml``.

The nearest one is used, from a directory upwards to the root of its repository or of the file system. An allow rule of
somebody else's file could hide a leak, so a file that others can write, or put there, is refused.
"""

import errno
import os
import stat
from pathlib import Path

from leakcheck._native import read_input
from leakcheck.config import OWN, PYPROJECT, Config, parsed
from leakcheck.errors import UsageError, reason

_ROOTS = (".git", ".hg")
_MOST = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_IRREGULAR = "it is no regular file"


def find(start: Path | None = None) -> Config:
    """Return the nearest configuration from the directory `start` upwards; default: the working directory.

    Raises:
        UsageError: it cannot be used, or is not to be trusted.
    """
    try:
        directory = Path.cwd() if start is None else start.resolve()
        at = os.open(start or ".", _DIRECTORY)
    except OSError:
        return Config()
    try:
        for place in (directory, *directory.parents):
            for name in (OWN, PYPROJECT):
                if (found := _in(at, place / name)) is not None:
                    return found
            if any(_exists(at, name) for name in _ROOTS):
                break
            # From the one below it: who can rename a directory on the way could else choose another one.
            try:
                above = os.open("..", _DIRECTORY, dir_fd=at)
            except OSError:
                break
            os.close(at)
            at = above
    finally:
        os.close(at)
    return Config()


def read(path: Path) -> Config:
    """Return the configuration in the file that the user names, whoever wrote it; raise `UsageError`."""
    found = parsed(path, read_input("configuration", path, most=_MOST))
    if found is None:
        raise UsageError(f"{path}: has no table [tool.leakcheck]")
    return found


def _in(directory: int, path: Path) -> Config | None:
    """Return the configuration in the file `path` of the open `directory`, if it is there and is one."""
    own = path.name == OWN
    try:
        file, link = _opened(directory, path.name, follow=not own)
    except FileNotFoundError:
        return None
    except OSError as error:
        # Nothing says that a pyproject.toml which cannot be read is for us, or that there is a file at all in a
        # directory that may not be searched.
        if not own or not _exists(directory, path.name):
            return None
        why = "it is a link" if error.errno == errno.ELOOP else f"cannot be read: {reason(error)}"
        raise _refused(path, why) from error
    try:
        why = _distrust(file, directory, link=link)
        if own and why:
            raise _refused(path, why)
        data = b"" if why == _IRREGULAR else _content(file)
    finally:
        os.close(file)
    if not own and b"leakcheck" not in data:
        return None
    try:
        if len(data) > _MOST:
            raise UsageError(f"{path}: is larger than {_MOST >> 20} MiB")
        found = parsed(path, data.decode())
    except (UsageError, UnicodeDecodeError) as error:
        # It is not used either way.
        if why:
            return None
        raise error if isinstance(error, UsageError) else UsageError(f"{path}: not UTF-8") from error
    if found is not None and why:
        raise _refused(path, why)
    return found


def _opened(directory: int, name: str, *, follow: bool) -> tuple[int, bool]:
    """Open a file without waiting; return its descriptor, and whether it is a link, which only `follow` allows."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory), False
    except OSError as error:
        if not follow or error.errno != errno.ELOOP:
            raise
    return os.open(name, flags, dir_fd=directory), True


def _content(file: int) -> bytes:
    data = b""
    while len(data) <= _MOST and (more := os.read(file, _MOST)):
        data += more
    return data


def _distrust(file: int, directory: int, *, link: bool) -> str:
    """Return why the file's content may be somebody else's choice; empty if only root and this user can have made it.

    Through sudo, it may be that user's, too: they have run this command as root.
    """
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        trusted.add(int(os.environ["SUDO_UID"]))
    about, above = os.fstat(file), os.fstat(directory)
    if not stat.S_ISREG(about.st_mode):
        return _IRREGULAR
    if link:
        return "it is a link"
    for what, meta, number in (("it", about, file), ("its directory", above, directory)):
        if meta.st_uid not in trusted:
            return f"{what} belongs to another user, {_user(meta.st_uid)}"
        group = meta.st_mode & stat.S_IWGRP and not _private_group(meta, number)
        if meta.st_mode & stat.S_IWOTH or group:
            return f"others can write to {what}"
    return ""


def _private_group(meta: os.stat_result, number: int) -> bool:
    """Return whether the group of a file or directory has no member but its owner, and no list names more users."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(meta.st_uid), grp.getgrgid(meta.st_gid)
    except KeyError:
        return False
    if owner.pw_gid != meta.st_gid or owner.pw_name != group.gr_name or set(group.gr_mem) - {owner.pw_name}:
        return False
    try:
        # The mode has the most that any entry of the list grants (acl(5)).
        os.getxattr(f"/proc/self/fd/{number}", "system.posix_acl_access")
    except OSError:
        return True
    return False


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path}: not used: {why}; its rules could hide a leak. If it is yours, write leakcheck --config {path} …, "
        "and leakcheck --no-config … to do without"
    )


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True
