"""What a traced run did to the directories of its state files, as the tracer saw it, one change after the other."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

__all__ = ["Entry", "Event", "History", "history_of", "splits", "torn", "watched"]

# A disk writes a sector of this size at once or not at all.
SECTOR = 512


class Entry(msgspec.Struct, frozen=True):
    """What has a name: its inode, ``file``, ``directory``, ``link`` or ``other``, a file's bytes or a link's target.

    The content of a file of more than 256 KiB is None.
    """

    inode: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: bytes | None


Files: TypeAlias = Mapping[str, Entry]
"""What is there, by path."""


class Event(msgspec.Struct, frozen=True):
    """One step: the `files` after it.

    `change` is its number among the changes of its command, from 1; 0 if it changed none. `synced` is the inode that is
    on the disk now, or ``all``. A step that is neither makes something outside, as `what` says.
    """

    files: Files
    before: Files
    operation: str
    change: int = 0
    synced: str = ""
    what: str = ""

    @property
    def moved(self) -> list[tuple[str, str]]:
        """Each old name, with the new one of the same inode."""
        gone = {self.before[path].inode: path for path in self.before.keys() - self.files.keys()}
        return [
            (gone[entry.inode], path)
            for path, entry in self.files.items()
            if self.before.get(path) != entry and entry.inode in gone
        ]

    @property
    def arrived(self) -> list[str]:
        """Each new name of what a rename has brought from elsewhere."""
        known = {entry.inode for entry in self.before.values()}
        came = self.files.keys() - self.before.keys() | {
            path for path, entry in self.files.items() if self.before.get(path) != entry
        }
        return [path for path in sorted(came) if self.operation == "rename" and self.files[path].inode not in known]

    def written(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield the path, the former and the new content of each file that it wrote to."""
        former = {entry.inode: entry.content for entry in self.before.values()}
        for path, entry in self.files.items():
            old = former.get(entry.inode, b"")
            if entry.kind == "file" and entry.content is not None and old is not None and old != entry.content:
                yield path, old, entry.content


class History(msgspec.Struct, frozen=True):
    """All steps of a run, in order; `before` is what was there before the first one."""

    before: Files
    events: list[Event]

    def paths(self) -> frozenset[str]:
        """Return all paths that there ever were."""
        return frozenset(path for files in (self.before, *(event.files for event in self.events)) for path in files)

    def lineage(self, names: re.Pattern[str]) -> set[str]:
        """Return the inodes that ever had one of the `names`."""
        everything = (self.before, *(event.files for event in self.events))
        return {entry.inode for files in everything for path, entry in files.items() if names.fullmatch(path)}


# Operations that make something outside; a kill of a process makes nothing.
_MAKES = frozenset(
    [
        "mkdir",
        "mount",
        "move_mount",
        "clone",
        "mknod",
        "symlink",
        "link",
        "bind",
        "shmget",
        "semget",
        "msgget",
        "mq_open",
        "add_key",
        "rename",
    ]
)


def watched(declared: str) -> str:
    """Return the directory that is watched for a state file, as the adapter names it: all above a part that varies."""
    parts = declared.split("/")[:-1]
    # The box's own directory is not drawn.
    varies = ["*" in part or "{" in part.replace("{work}", "") for part in parts]
    fixed = varies.index(True) if True in varies else len(parts)
    return "/".join(parts[:fixed]) or "/"


def torn(old: bytes, new: bytes, at: int) -> bytes:
    """Return the content of a file of which only the first `at` bytes were written that make `old` `new`."""
    return new[:at] + old[at:]


def splits(old: bytes, new: bytes, *, middle: bool = False) -> list[int]:
    """Return the ends of sectors inside of what was written, and its `middle`: a full disk may stop there."""
    first = _alike(old, new)
    last = len(new)
    if len(old) == len(new):
        last -= _alike(old[::-1], new[::-1])
    found = {at for at in range(SECTOR, last, SECTOR) if at > first}
    return sorted(found | ({(first + last) // 2} if middle and last - first > 1 else set()))


def history_of(lines: Sequence[Mapping[str, Any]], within: str = "") -> History | None:
    """Return what the tracer reported of the directory `within`; None if it did not watch it."""
    before: Files | None = None
    files: dict[str, Entry] = {}
    events: list[Event] = []
    for line in lines:
        if "files" in line:
            files = dict(_entries(line["now"]))
            before = before if before is not None else files
        elif "changed" in line:
            was, changed = files, line["changed"]
            gone = {_text(path) for path in changed["gone"]}
            files = {path: entry for path, entry in was.items() if path not in gone} | dict(_entries(changed["now"]))
            events.append(Event(files, was, changed["operation"], change=changed["files"]))
        elif "synced" in line:
            events.append(Event(files, files, "sync", synced=line["synced"]))
        elif line.get("operation") in _MAKES and not line["class"].startswith(within or "\0"):
            events.append(Event(files, files, line["operation"], what=f"{line['operation']}({line['class']})"))
    return None if before is None else History(before, events)


def _entries(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Entry]]:
    for line in lines:
        content = None if line["content"] is None else bytes.fromhex(line["content"])
        fields = {name: line[name] for name in ("inode", "kind", "mode", "uid", "gid", "size")}
        yield _text(line["path"]), Entry(**fields, content=content)


def _text(path: str) -> str:
    return os.fsdecode(bytes.fromhex(path))


def _alike(one: bytes, other: bytes) -> int:
    """Return how many bytes both begin with."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
