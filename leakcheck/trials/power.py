"""A trial that recovers from what a power cut has left, in another arena, as after a boot."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from injectors import Plan, injector_for
from injectors.damages import CUTS, control_of
from injectors.filesystems import keeps_data
from injectors.history import Entry, Files, History
from injectors.state import state_plan
from leakcheck.targets import Box, Target
from leakcheck.trials import open_host
from leakcheck.trials.aftermath import Aftermath
from leakcheck.trials.boot import lasts, warm_up_after_boot
from leakcheck.trials.case import Case
from leakcheck.trials.disk import Disk, disks
from leakcheck.trials.isolated import Isolated
from leakcheck.trials.neighbour import run_trial_beside
from leakcheck.trials.outcome import worst
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.rootfs import make_directory, opened, write_file
from leakcheck.trials.session import Session
from leakcheck.trials.state_history import RecordedRun
from leakcheck.trials.trial import Trial
from leakcheck.trials.turns import Turn


def cuts(target: Target, recorded: RecordedRun, declared: str) -> dict[Plan, "Cut"]:
    """Return what power cuts during a recorded run leave, by plan; nothing of a state file in memory."""
    place = target.filled(declared, recorded.box)
    if declared not in recorded.all or declared in recorded.uncut:
        return {}
    if not lasts(target, place):
        return {}
    history = on_disk(target, recorded.all[declared])
    found: dict[str, Disk] = {}
    for model in CUTS:
        # Before the first step, nothing can be lost.
        found |= {control_of(f"cut={model}"): dict(history.before)}
        found |= {f"cut={place}": disk for place, disk in disks(history, model).items()}
    return {
        state_plan(declared, damage): Cut(recorded.box, history.before, history.paths(), disk)
        for damage, disk in found.items()
    }


def on_disk(target: Target, history: History) -> History:
    """Return the history of what is on a disk: all of it if the adapter says so, but for files that were not read."""
    everything = (history.before, *(event.files for event in history.events))
    unread = {path for files in everything for path, one in files.items() if one.kind == "file" and one.content is None}

    def kept(files: Files) -> Files:
        return {path: one for path, one in files.items() if path not in unread and lasts(target, path)}

    events = [msgspec.structs.replace(one, files=kept(one.files), before=kept(one.before)) for one in history.events]
    return History(kept(history.before), events)


class Cut(msgspec.Struct, frozen=True):
    """A power cut during a run of `box`: the `disk` of all `paths`, where `before` was at its start."""

    box: Box
    before: Files
    paths: frozenset[str]
    disk: Disk


def run_power_trial(target: Target, case: Case, cut: Cut, *, settle: float, turn: Turn | None = None) -> Trial:
    """Boot with what a power cut has left, recover, and run what follows.

    The arena is another one: no process, mount or cgroup of the run is there, nor what was in memory, and the boot id
    is another.
    """
    began = time.monotonic()
    injector = injector_for(case.plan)
    with open_host(target, settle, live=False, options={"turn": turn}) as host:
        session = Session(target, host, cut.box.number)
        session.timing_ms["up"] = (time.monotonic() - began) * 1000
        with session.timed("warm-up"):
            wrong = warm_up_after_boot(session)
        if wrong:
            trial = Trial(case=case, outcomes=frozenset({"false-status"}), detail=f"warm-up run: {wrong}")
        else:
            session.box = msgspec.structs.replace(session.box, name=cut.box.name, run=cut.box.run)
            with session.timed("baseline"):
                host.begin()
            with session.timed("run"):
                write_disk(host.root, cut)
            with session.timed("settle"):
                first = host.observe()
            after = Aftermath(session, case, injector, first, succeeded=False)
            after.follow()
            outcomes = set(after.outcomes())
            detail = list(after.failures)
            if worst(outcomes) == "unknown":
                detail += [f"{kind}: {reason}" for kind, reason in after.gaps.items()]
            trial = Trial(
                case=case,
                outcomes=frozenset(outcomes),
                left=after.left,
                detail="; ".join(detail),
                recovery=after.recovery,
                gaps=after.gaps,
                untied=[Remnant.of(leak) for leak in first.unattributed],
                noted=after.noted,
            )
        if turn is not None:
            turn.lend()
        down = time.monotonic()
    session.timing_ms["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, timing_ms=session.timing_ms)


def write_disk(root: int, cut: Cut) -> None:
    """Make each path what it is on the disk; what did not change stays as it is here."""
    disk = cut.disk
    changed = {path for path in cut.paths if not _same(cut.before.get(path), disk.get(path)) and _on_disk(root, path)}
    for path in sorted(changed, reverse=True):
        was, now = cut.before.get(path), disk.get(path)
        # What was there stays the same file.
        if was is None or now is None or was.kind != now.kind or now.kind == "link":
            _remove(root, Path(path))
    for path in sorted(changed):
        if (entry := disk.get(path)) is None:
            continue
        if entry.kind == "directory":
            make_directory(root, Path(path))
        elif entry.kind == "file" and entry.content is not None:
            write_file(root, Path(path), entry.content)
        elif entry.kind == "link" and entry.content is not None:
            with opened(root, Path(path).parent, os.O_PATH | os.O_DIRECTORY) as at:
                os.symlink(entry.content, Path(path).name, dir_fd=at)
            continue
        else:
            continue
        with opened(root, Path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
            # An ordinary user's arena has one owner of files, who is somebody else outside.
            if os.geteuid() == 0:
                os.fchown(file, entry.uid, entry.gid)
            os.fchmod(file, entry.mode)


def _on_disk(root: int, path: str) -> bool:
    """Return whether `path` can be a file of the target: not in a file system of the kernel, to which a link led."""
    try:
        with opened(root, Path(path).parent, os.O_PATH | os.O_DIRECTORY) as at:
            return keeps_data(at)
    except FileNotFoundError:
        # It is made first.
        return True


def _same(before: Entry | None, now: Entry | None) -> bool:
    fields = ("kind", "mode", "uid", "gid", "content")
    if before is None or now is None:
        return before is now
    return all(getattr(before, name) == getattr(now, name) for name in fields)


def _remove(root: int, path: Path) -> None:
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        opened(root, path.parent, os.O_PATH | os.O_DIRECTORY) as at,
    ):
        try:
            os.unlink(path.name, dir_fd=at)
        except IsADirectoryError:
            os.rmdir(path.name, dir_fd=at)


class WithCuts(Isolated):
    """Makes trials, those of power cuts by their plans, and those beside another box."""

    cuts: Mapping[Plan, Cut] = {}

    def _make(self, number: int, case: Case, turn: Turn) -> Trial:
        cut = self.cuts.get(case.plan)
        beside = case.plan.kind == "state" and "beside" in case.plan.flags
        if cut is None and not beside:
            return super()._make(number, case, turn)
        try:
            if cut is None:
                return run_trial_beside(self._target, case, number % 100, settle=self._settle, turn=turn)
            return run_power_trial(self._target, case, cut, settle=self._settle, turn=turn)
        finally:
            turn.end()
