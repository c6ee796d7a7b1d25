"""What an honest run does to its state files, change by change."""

import re

import msgspec

from injectors.crash import recording
from injectors.damages import MOVES
from injectors.history import Event, History, history_of, splits, watched
from leakcheck.errors import TargetError
from leakcheck.submissions import BUILTIN
from leakcheck.targets import Box, Target
from leakcheck.trials import open_host
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.host import Host
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session

_STAGES = ("prepare", "launch", "finish")
_OTHERS = "a process of an earlier run lives on, and nobody sees what it writes and syncs"
# The tracer reads no more of a file (`trace::files` of the warden).
_LARGE = "it is larger than 256 KiB, and the tracer does not read it"


class RecordedRun(msgspec.Struct, frozen=True):
    """A run of the `box`: its steps in all stages, by state file as the adapter names it, and those of its launch.

    `names` is the pattern of a state file's paths; `notes` is what the tracer could not see. `uncut` are state files of
    which nobody knows what a power cut leaves, and why.
    """

    box: Box
    all: dict[str, History]
    launch: dict[str, History]
    names: dict[str, re.Pattern[str]]
    notes: list[str]
    uncut: dict[str, str] = {}


def record_history(target: Target, stop: Stop) -> RecordedRun:
    """Record an honest run of `target`, in an arena; raise `TargetError` if it is not right."""
    directories = sorted({watched(declared) for declared in target.adapter.state_files})
    with open_host(target, 0, live=False) as host:
        session = Session(target, host, stop=stop)
        if wrong := session.again():
            raise TargetError(f"{target.name}: warm-up run: {wrong}")
        session.renew()
        before = _pids(session.host)
        with session.tracing(
            lambda _, number, payload: {**recording(number, payload, every=True), "files": directories}
        ) as tracing:
            wrong = session.run(session.prepare(BUILTIN["ok"]), BUILTIN["ok"])
            lines = {stage: tracing.reports(stage) for stage in _STAGES}
            if tracing.failing():
                return RecordedRun(session.box, {}, {}, {}, ["it uses ptrace itself: its writes are not seen"])
            notes = tracing.notes()
        if wrong:
            raise TargetError(f"{target.name}: traced run: {wrong}")
        found = RecordedRun(session.box, {}, {}, {}, notes)
        lives = _OTHERS if before & _pids(session.host) else ""
        for declared in target.adapter.state_files:
            within = target.filled(watched(declared), session.box)
            filled = target.filled(declared, session.box)
            found.names[declared] = re.compile("[^/]*".join(map(re.escape, filled.split("*"))), re.DOTALL)
            if (history := history_of([line for stage in _STAGES for line in lines[stage]], within)) is not None:
                found.all[declared] = history
            if (history := history_of(lines["launch"], within)) is not None:
                found.launch[declared] = history
            if why := lives or _unread(found, declared):
                found.uncut[declared] = why
    return found


def _pids(host: Host) -> set[int]:
    return host.pids() if isinstance(host, ArenaHost) else set()


def _unread(recorded: RecordedRun, declared: str) -> str:
    """Return why what a run makes of a state file is not known; empty if it is."""
    if (history := recorded.all.get(declared)) is None:
        return ""
    names = recorded.names[declared]
    inodes = history.lineage(names)
    if not any(event.change and _touched(event, names, inodes) for event in history.events):
        return "no run was seen to change it"
    files = (entry for event in history.events for entry in event.files.values() if entry.inode in inodes)
    return _LARGE if any(one.kind == "file" and one.content is None for one in files) else ""


def moments(recorded: RecordedRun, again: RecordedRun, declared: str) -> list[str]:
    """Return the damages at the instants of a launch's changes to a state file that came in both of two recordings."""
    if declared not in recorded.launch or declared not in again.launch:
        return []
    history, names = recorded.launch[declared], recorded.names[declared]
    shapes = [
        [_shape(event.operation, event.change) for event in one.events if event.change]
        for one in (history, again.launch[declared])
    ]
    same = next((at for at, pair in enumerate(zip(*shapes, strict=False)) if pair[0] != pair[1]), min(map(len, shapes)))
    inodes = history.lineage(names)
    found: list[str] = []
    for event in history.events:
        if not 0 < event.change <= same:
            continue
        if not _touched(event, names, inodes):
            continue
        found.append(f"at={event.change}")
        for _, old, new in event.written():
            found += [f"at={event.change}.{length}" for length in splits(old, new, middle=True)]
        if any(event.files[new].kind == "file" for _, new in event.moved):
            found += [f"{how}={event.change}" for how in MOVES]
    return list(dict.fromkeys(found))


def _touched(event: Event, names: re.Pattern[str], inodes: set[str]) -> bool:
    """Return whether a step changed a state file, by its name or by its inode."""
    paths = [
        path for path in event.files.keys() | event.before.keys() if event.files.get(path) != event.before.get(path)
    ]
    touched = {files[path].inode for files in (event.files, event.before) for path in paths if path in files}
    return bool(touched & inodes) or any(names.fullmatch(path) for path in paths)


def _shape(operation: str, change: int) -> tuple[str, int]:
    return operation, change
