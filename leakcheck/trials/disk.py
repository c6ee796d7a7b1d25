"""What of a run's state files is on the disk after a power cut.

Two models. ``posix``: what was not synced may be there or not, each name and each file on its own, in any order; only a
rename is one step (fsync(2): a new name needs an fsync of its directory; Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014, section 3). ``ext4``, with its defaults (data=ordered, delayed allocation, auto_da_alloc):
names reach the disk in their order, an fsync of any file takes all of them along, a new file may be empty, and what is
renamed over another file has its data (Documentation/admin-guide/ext4.rst).
"""

from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from injectors.history import Entry, Event, Files, History, splits, torn

__all__ = ["Disk", "disks", "unsynced"]

Names: TypeAlias = dict[str, str]
Disk: TypeAlias = dict[str, Entry]
"""What is on the disk, by path."""

# States of the disk of one file that are looked for.
_MOST = 4096


class _Step(msgspec.Struct, frozen=True):
    """A change of names that is one on the disk: path → inode, or None if it is gone. `replaces` a file by another."""

    names: dict[str, str | None]
    replaces: frozenset[str] = frozenset()


class _Cache:
    """What the kernel has not yet written to the disk."""

    def __init__(self, history: History, *, ordered: bool) -> None:
        self._ordered = ordered
        # Of each watched directory, the topmost.
        ever = history.paths()
        self._tops = {path for path in ever if path.rpartition("/")[0] not in ever}
        self._names: Names = {path: entry.inode for path, entry in history.before.items()}
        self._pending: list[_Step] = []
        self._versions: dict[str, list[Entry]] = {entry.inode: [entry] for entry in history.before.values()}
        self._new: set[str] = set()
        # What was written to the disk before it came here.
        self._flushed: set[str] = set()

    def step(self, event: Event) -> None:
        if event.change:
            self._change(event)
        if event.synced == "all":
            self._pending.clear()
            self._names = {path: entry.inode for path, entry in event.files.items()}
            for inode in self._versions:
                self._flush(inode)
        elif event.synced:
            self._sync(event.synced, event.files)

    def _change(self, event: Event) -> None:
        was = {path: entry.inode for path, entry in event.before.items()}
        now = {path: entry.inode for path, entry in event.files.items()}
        names = {path: now.get(path) for path in was.keys() | now.keys() if was.get(path) != now.get(path)}
        if names:
            over = frozenset(inode for path, inode in names.items() if inode is not None and path in was)
            self._pending.append(_Step(names, over))
        whole = {event.files[path].inode for path in event.arrived} & self._flushed
        for entry in event.files.values():
            versions = self._versions.setdefault(entry.inode, [])
            if not versions and entry.inode not in whole:
                self._new.add(entry.inode)
            if not versions or versions[-1] != entry:
                versions.append(entry)

    def _sync(self, inode: str, files: Files) -> None:
        directory = next((path for path, one in files.items() if one.inode == inode and one.kind == "directory"), None)
        if directory is None:
            self._flush(inode)
        if self._ordered:
            due, rest = self._pending, []
        else:
            due = [one for one in self._pending if directory is not None and _of(one, directory)]
            rest = [one for one in self._pending if one not in due]
        self._pending = rest
        for one in due:
            _apply(self._names, one)

    def _flush(self, inode: str) -> None:
        self._flushed.add(inode)
        self._versions[inode] = self._versions.get(inode, [])[-1:]
        self._new.discard(inode)

    def disks(self) -> Iterator[Disk]:
        for steps in self._orders():
            names = dict(self._names)
            for one in steps:
                _apply(names, one)
            # Without its directory, nothing of it has a name; above the topmost, all was there before.
            kept = {
                path: inode for path, inode in names.items() if path in self._tops or path.rpartition("/")[0] in names
            }
            written = {inode for one in steps for inode in one.replaces} if self._ordered else set()
            newest = {path: self._versions[inode][-1] for path, inode in kept.items()}
            yield newest
            choices = {path: self._older(inode) for path, inode in kept.items() if inode not in written}
            for path, older in choices.items():
                yield from (newest | {path: entry} for entry in older)
            yield newest | {path: older[0] for path, older in choices.items() if older}

    def _orders(self) -> Iterator[list[_Step]]:
        pending = self._pending
        yield from (pending[:count] for count in range(len(pending) + 1))
        if not self._ordered:
            yield from ([one] for one in pending)
            yield from (pending[:at] + pending[at + 1 :] for at in range(len(pending)))

    def _older(self, inode: str) -> list[Entry]:
        """Return what a file may contain instead of what was written to it last."""
        versions = self._versions[inode]
        last = versions[-1]
        if last.kind != "file" or last.content is None:
            return []
        found = list(versions[:-1])
        if inode in self._new:
            found.insert(0, msgspec.structs.replace(last, content=b"", size=0))
            if not self._ordered:
                found.append(msgspec.structs.replace(last, content=bytes(len(last.content))))
        old = versions[-2].content if len(versions) > 1 else b""
        if (inode in self._new or len(versions) > 1) and old is not None:
            parts = splits(old, last.content)
            found += [msgspec.structs.replace(last, content=torn(old, last.content, at)) for at in parts]
        return found


def _of(step: _Step, directory: str) -> bool:
    return any(path.rpartition("/")[0] == directory for path in step.names)


def _apply(names: Names, step: _Step) -> None:
    for path, inode in step.names.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def disks(history: History, model: str) -> dict[str, Disk]:
    """Return the different states of the disk after a power cut at any instant of a run, by the place of a damage."""
    cache = _Cache(history, ordered=model == "ext4")
    found: dict[str, Disk] = {}
    seen: set[tuple[tuple[str, bytes | None, str, int], ...]] = set()
    for number, event in enumerate(history.events, 1):
        cache.step(event)
        if event.what:
            continue
        count = 0
        for disk in cache.disks():
            key = tuple(sorted((path, one.content, one.kind, one.mode) for path, one in disk.items()))
            if key not in seen and len(found) < _MOST:
                seen.add(key)
                found[f"{model}.{number}.{count}"] = disk
                count += 1
    return found


def unsynced(history: History, inodes: set[str]) -> list[str]:
    """Return what a run made outside while a state file that it had renamed into place was not on the disk.

    It is the disk of the model ``posix``; after a power cut, nothing would know of it.
    """
    waiting: dict[str, set[str]] = {}
    clean: set[str] = set()
    found: list[str] = []
    for event in history.events:
        if event.what and waiting:
            found.append(event.what)
        if event.synced:
            clean.add(event.synced)
            waiting = {inode: rest for inode, needs in waiting.items() if (rest := needs - {event.synced})}
        if event.synced == "all":
            waiting = {}
            clean |= {entry.inode for entry in event.files.values()}
        # What arrives was written elsewhere.
        clean -= {event.files[path].inode for path, _, _ in event.written() if path not in event.arrived}
        for new in (*(new for _, new in event.moved), *event.arrived):
            inode, above = event.files[new].inode, event.files.get(new.rpartition("/")[0])
            if inode in inodes and event.files[new].kind == "file":
                waiting[inode] = ({inode} - clean) | ({above.inode} if above is not None else set())
    return list(dict.fromkeys(found))
