"""The life of what a run left: which call made it, and which one removes it in a run without the fault.

What is the same thing in two calls of a run is decided by its identity alone: device and inode, id of a mount, number
of a process, inode of a namespace. Between two runs, only the names of the points are compared.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from leakcheck.trials.calls import Call, Ended, Event, Fired, Object
from leakcheck.trials.explanation import Life
from leakcheck.trials.remnant import Remnant

__all__ = ["lives"]

# What exists since the call that made it: an inode or a number of before belongs to something that is gone.
_NEW = ("inode", "named", "mount", "mounted", "process", "namespace")
# Flags by which mount(2) changes a mount that is there.
_CHANGES = re.compile(r"\bMS_(REMOUNT|PRIVATE|SLAVE|SHARED|UNBINDABLE)\b")
# A call that creates a file or directory at an absolute path without characters that are escaped.
_CREATES = re.compile(r'(?:mkdir|mknod|open)\("(/[^"\\]*)"(?:, [\w|]*\bO_CREAT\b|, 0)')
_Key = tuple[str, int | str, int | str]
# Calls that give an object an id, and that remove one.
_QUEUE = re.compile(r'mq_(?:open|unlink)\("/?([^"/]*)"')
_IPC = {"shmget": "shm", "semget": "sem", "msgget": "msg", "shmctl": "shm", "semctl": "sem", "msgctl": "msg"}


def lives(
    left: Sequence[Remnant], killed: Sequence[Event], honest: Sequence[Event], hierarchies: Mapping[str, str]
) -> list[Life]:
    """Return the life of each of `left`; `hierarchies` has the device of each cgroup hierarchy.

    `killed` are the events of the run that left it, `honest` those of a run without the fault.
    """
    known = _Run(killed)
    other = _Run(honest)
    return [_life(one, known, other, hierarchies) for one in left]


def _life(one: Remnant, killed: "_Run", honest: "_Run", hierarchies: Mapping[str, str]) -> Life:
    found = Life(kind=one.kind, label=one.label)
    key = killed.key_of(msgspec.json.decode(one.evidence).get("resource", {}), one.kind, hierarchies)
    if key is None or (maker := killed.maker.get(key)) is None:
        return found
    call, after_fault = maker
    tried = [f"{at.text} = {at.result}" for at in killed.of_recovery if key in _touched(at)]
    released, how = honest.end_of(call, key)
    if released:
        how = "made after the fault" if after_fault else "the fault came between them"
        if failed := killed.failed_at(released, key):
            how = f"under the fault that call returned {failed}"
    return msgspec.structs.replace(found, created=call.name, released=released, how=how, tried=tried)


class _Run:
    """The calls of a run: what each made, and when it was removed."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.maker: dict[_Key, tuple[Call, bool]] = {}
        self.of_recovery = [one for one in events if isinstance(one, Call) and one.point.stage == "recover"]
        self._events = events
        # Every name that an inode had: in another root it has another one.
        self._paths: dict[_Key, set[str]] = defaultdict(set)
        self._places = {one.name: at for at, one in enumerate(events) if isinstance(one, Call)}
        fired = False
        for event in events:
            fired |= isinstance(event, Fired)
            if isinstance(event, Call):
                # Without results, a call that removes a name may have failed: it did if the name is there at the end.
                # What a recovery removed at last was left before it.
                removed = _freed(event) if event.point.stage != "recover" else ()
                for key in [one for one in removed if one[0] != "named"]:
                    self.maker.pop(key, None)
                    self._paths.pop(key, None)
                for key in _made(event):
                    # Each of the others may have existed before the call that returns it.
                    if key[0] in _NEW or key not in self.maker:
                        self.maker[key] = event, fired
                if event.now is not None:
                    self._paths[_inode(event.now)].add(event.now.path)

    def key_of(self, resource: Mapping[str, Any], kind: str, hierarchies: Mapping[str, str]) -> _Key | None:
        """Return the identity of a resource of a report, as calls have it; None if it cannot be told."""
        match kind:
            case "ipc" if resource["class"] == "mqueue":
                return ("mqueue", 0, resource["name"].rpartition("/")[2])
            case "ipc" if resource["class"] == "posix-shm":
                return self.key_of({"path": resource["name"], "ino": resource["id"]}, "file", hierarchies)
            case "file":
                # The report has the device of the writable layer. In this run, the path tells which inode is meant.
                same = [k for k, paths in self._paths.items() if resource["path"] in paths and k[2] == resource["ino"]]
                return same[0] if len(same) == 1 else ("named", "", resource["path"])
            case "cgroup":
                return ("inode", hierarchies.get(resource["hierarchy"], ""), resource["ino"])
            case "mount":
                key = ("mount", 0, resource["id"].get("unique", -1))
                return key if key in self.maker else ("mounted", 0, resource["target"])
            case "process":
                return ("process", 0, resource["pid"])
            case "namespace":
                return ("namespace", 0, resource["ino"])
            case "ipc":
                return (resource["class"], 0, resource["id"])
            case "key":
                return ("key", 0, resource["serial"])
            case "lock":
                device = resource["dev"]
                return ("lock", f"{device >> 32}:{device & 0xFFFFFFFF}", resource["ino"])
            case _:
                return None

    def failed_at(self, name: str, key: _Key) -> str:
        """Return what the last call of this name, or of this operation on the thing `key`, returned if it failed."""
        operation = name.rpartition("/")[2].partition("(")[0]
        failed = [
            one
            for one in self._events
            if isinstance(one, Call)
            and one.value is not None
            and one.value < 0
            and one.point.stage == name.partition(":")[0]
            and (one.name == name or (one.point.operation == operation and key in _touched(one)))
        ]
        return failed[-1].result if failed else ""

    def end_of(self, maker: Call, key: _Key) -> tuple[str, str]:
        """Return the call that removes what the same call makes in this run, or else what is to be said of its end."""
        at = self._places.get(maker.name)
        made = self._events[at] if at is not None else None
        if at is None or not isinstance(made, Call):
            return "", "a run without the fault does not make this call"
        # Only what is of the same kind: a clone makes a process and its namespaces.
        keys = {one for one in _made(made) if one[0] == key[0]}
        if not keys:
            return "", "in a run without the fault, this call does not make it"
        for event in self._events[at + 1 :]:
            if isinstance(event, Call) and keys & set(_freed(event)):
                return event.name, ""
            if isinstance(event, Ended) and event.role == made.child and event.stage == made.point.stage:
                if key[0] == "process":
                    how = f"exit code {event.code}" if event.code >= 0 else f"signal {-event.code}"
                    return "", f"without the fault, this process ends with {how}"
                return "", f"without the fault, the kernel releases it when process {event.role} has ended"
        if key[0] in ("namespace", "lock", "mount"):
            return "", "no call of a run without the fault releases it: the kernel does, with its last user"
        return "", "no call of a run without the fault releases it"


def _inode(one: Object) -> _Key:
    return ("inode", one.dev, one.ino)


def _made(call: Call) -> Iterator[_Key]:
    """Yield what a call has made."""
    if call.value is None:
        # Of a command that uses ptrace itself no result is seen: what was not there before is known by its name.
        if call.looked and call.before is None and (named := _CREATES.match(call.text)) is not None:
            yield ("named", "", named[1])
    elif call.value >= 0:
        yield from _returned(call, call.value)


def _returned(call: Call, value: int) -> Iterator[_Key]:
    """Yield what a call that succeeded, with `value`, has made."""
    match call.point.operation:
        case "mkdir" | "mknod" | "symlink" | "bind" if call.now is not None:
            yield _inode(call.now)
        case "open" if call.now is not None and call.looked and call.before is None and "O_CREAT" in call.text:
            yield _inode(call.now)
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


def _freed(call: Call) -> Iterator[_Key]:
    """Yield what a call has removed."""
    if call.value is None:
        if call.point.operation in ("rmdir", "unlink") and call.before is not None:
            yield ("named", "", call.before.path)
        return
    if call.value < 0:
        return
    match call.point.operation:
        case "rmdir" | "unlink" if call.before is not None:
            yield _inode(call.before)
        case "rename" if call.before is not None and call.source is not None and call.before.ino != call.source.ino:
            yield _inode(call.before)
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


def _queue(call: Call) -> Iterator[_Key]:
    if (named := _QUEUE.match(call.text)) is not None:
        yield ("mqueue", 0, named[1])


def _touched(call: Call) -> set[_Key]:
    """Return what a call is about, whatever it returned."""
    objects = [one for one in (call.before, call.now, call.source) if one is not None]
    return {_inode(one) for one in objects} | set(_freed(call))
