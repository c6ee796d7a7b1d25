"""What a recorded call has made, and what it has removed: by the identities of both."""

import re
from collections.abc import Iterator

from leakcheck.trials.calls import Call, Object

__all__ = ["Key", "creates", "inode", "removes", "touched"]

Key = tuple[str, int | str, int | str]
"""The identity of a thing: its kind, its device or name of a class, its number or name."""

# Flags by which mount(2) changes a mount that is there.
_CHANGES = re.compile(r"\bMS_(REMOUNT|PRIVATE|SLAVE|SHARED|UNBINDABLE)\b")
# A call that creates a file or directory at an absolute path without characters that are escaped.
_CREATES = re.compile(r'(?:mkdir|mknod|open)\("(/[^"\\]*)"(?:, [\w|]*\bO_CREAT\b|, 0)')
# Calls that give an object an id, and that remove one.
_QUEUE = re.compile(r'mq_(?:open|unlink)\("/?([^"/]*)"')
_IPC = {"shmget": "shm", "semget": "sem", "msgget": "msg", "shmctl": "shm", "semctl": "sem", "msgctl": "msg"}


def inode(one: Object) -> Key:
    """Return the identity of a file, directory or socket."""
    return ("inode", one.dev, one.ino)


def creates(call: Call) -> Iterator[Key]:
    """Yield what a call has made."""
    if call.value is None:
        # Of a command that uses ptrace itself no result is seen: what was not there before is known by its name.
        if call.looked and call.before is None and (named := _CREATES.match(call.text)) is not None:
            yield ("named", "", named[1])
    elif call.value >= 0:
        yield from _returned(call, call.value)


def _returned(call: Call, value: int) -> Iterator[Key]:
    """Yield what a call that succeeded, with `value`, has made."""
    match call.point.operation:
        case "mkdir" | "mknod" | "symlink" | "bind" if call.now is not None:
            yield inode(call.now)
        case "open" if call.now is not None and call.looked and call.before is None and "O_CREAT" in call.text:
            yield inode(call.now)
        case "mount" | "move_mount" if call.now is not None and call.before is not None:
            if call.now.mount != call.before.mount:
                yield ("mount", 0, call.now.mount)
            elif call.point.class_.startswith("/proc/self/fd/") and not _CHANGES.search(call.text):
                # The descriptor is of the directory below the new mount, and shows that one still.
                yield ("mounted", 0, call.before.path)
        case "clone" | "unshare":
            yield from [("process", 0, value)] if call.child else []
            new = call.point.class_.split("+")
            yield from (("namespace", 0, inode) for name, inode in call.namespaces.items() if name in new)
        case "shmget" | "semget" | "msgget":
            yield (_IPC[call.point.operation], 0, value)
        case "mq_open":
            yield from _queue(call)
        case "add_key" | "request_key" | "keyctl":
            yield ("key", 0, value)
        case "lock" if call.before is not None and not call.text.endswith(("F_UNLCK)", "LOCK_UN)")):
            yield ("lock", call.before.dev, call.before.ino)


def removes(call: Call) -> Iterator[Key]:
    """Yield what a call has removed."""
    if call.value is None:
        if call.point.operation in ("rmdir", "unlink") and call.before is not None:
            yield ("named", "", call.before.path)
        return
    if call.value < 0:
        return
    match call.point.operation:
        case "rmdir" | "unlink" if call.before is not None:
            yield inode(call.before)
        case "rename" if call.before is not None and call.source is not None and call.before.ino != call.source.ino:
            yield inode(call.before)
        case "umount" if call.before is not None:
            yield from (("mount", 0, call.before.mount), ("mounted", 0, call.before.path))
        case "shmctl" | "semctl" | "msgctl" if call.id is not None:
            yield (_IPC[call.point.operation], 0, call.id)
        case "mq_unlink":
            yield from _queue(call)
        case "keyctl" if call.id is not None:
            yield ("key", 0, call.id)
        case "lock" if call.before is not None and call.text.endswith(("F_UNLCK)", "LOCK_UN)")):
            yield ("lock", call.before.dev, call.before.ino)


def _queue(call: Call) -> Iterator[Key]:
    if (named := _QUEUE.match(call.text)) is not None:
        yield ("mqueue", 0, named[1])


def touched(call: Call) -> set[Key]:
    """Return what a call is about, whatever it returned."""
    objects = [one for one in (call.before, call.now, call.source) if one is not None]
    return {inode(one) for one in objects} | set(removes(call))
