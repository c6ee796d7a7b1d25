"""An arena as the host of a trial."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil

from injectors import Room
from leakcheck import _native
from leakcheck.arena import Arena, Trace, prepare_observation
from leakcheck.errors import UsageError
from leakcheck.report import Leak, Report
from leakcheck.targets import Target
from leakcheck.targets.executables import binds
from leakcheck.trials.arena_room import ArenaRoom
from leakcheck.trials.end_state import end_state
from leakcheck.trials.host import ENV, KINDS, Running
from leakcheck.trials.rootfs import make_directory, read_file, write_file
from leakcheck.trials.similarity import place_of
from leakcheck.trials.turns import Turn


class ArenaHost:
    """An arena: everything new in it belongs to the trial. It shows the target's programs and the `needed` paths.

    `turn` is lent while it waits for teardown; `options` are more options of `leakcheck.arena.Arena`.
    """

    # An ordinary user's arena shows the host's /var/lib, where only root makes directories.
    work = Path("/var/lib" if os.geteuid() == 0 else "/run") / "leakcheck-campaign" / "box"
    marker = Path("/tmp/leakcheck-marker")  # noqa: S108 - the arena's own
    apart = True

    def __init__(
        self,
        target: Target,
        settle: float,
        needed: Sequence[str | os.PathLike[str]] = (),
        *,
        turn: Turn | None = None,
        **options: Any,
    ) -> None:
        self._turn = turn
        self._target = target
        asked = [(place, place, True) for place in target.adapter.binds]
        if absent := [place for place, _, _ in asked if not os.path.lexists(place)]:
            raise UsageError(f"adapter {target.path}: binds: {absent[0]}: no such file or directory on this machine")
        self._arena = Arena(hostname="arena", binds=[*binds([*target.programs(), *needed]), *asked], **options)
        self._settle_ms = round(settle * 1000)
        self._root = -1
        self._from_start: list[dict[str, Any]] = []
        self.scratch: list[Path] = []
        """Directories of ours, in which files are no residue."""

    def __enter__(self) -> Self:
        self._end_preparation = prepare_observation(settings=False)
        try:
            self._arena.up()
            self._root = os.open(f"/proc/{self._arena.init}/root", os.O_PATH | os.O_DIRECTORY)
            make_directory(self._root, self.work)
            if os.geteuid() != 0:
                # The overlays of an ordinary user's arena have directories of that user on top.
                self._from_start = _damaged(_native.snapshot(kinds="file", arena=self._arena.view))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end_preparation()
        # Before the arena is removed: its file systems exist as long as somebody holds them, as snapshots do.
        for snapshot in ("_before", "_marked"):
            self.__dict__.pop(snapshot, None)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        self._arena.down()

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], output: int, cwd: str = "/", trace: Trace | None = None
    ) -> Running:
        """Start a command in the arena."""
        return self._arena.popen(argv, env=ENV | dict(env), cwd=cwd, stdout=output, stderr=output, trace=trace)

    @property
    def root(self) -> int:
        """A descriptor of the arena's root directory."""
        return self._root

    @property
    def cgroups(self) -> Mapping[str, str]:
        """The arena's cgroup on the host, by hierarchy."""
        return self._arena.cgroups

    def record_initial_state(self) -> None:
        """Record what the arena has now as its own, as the first command or look does: a change of that is damage."""
        _ = self._arena.view

    def make_directory(self, path: Path) -> None:
        """Create the directory `path` in the arena, with its parents."""
        make_directory(self._root, path)

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return everything that runs in the arena."""
        del supervisor
        return ArenaRoom(self._arena).tree()

    def pids(self) -> set[int]:
        """Return the process ids, on the host, of everything that runs in the arena."""
        return self._arena.pids()

    def read(self, path: Path) -> bytes:
        """Return the content of the arena's file."""
        return read_file(self._root, path)

    def environment(self, pid: int) -> bytes:
        """Return the environment of the process with this number in the arena."""
        return _native.environment(pid, arena=self._arena.view) or b""

    def write(self, path: Path, content: bytes, *, executable: bool = False) -> None:
        """Write the arena's file, resolving links inside the arena; everybody may execute it if it is `executable`."""
        write_file(self._root, path, content, executable=executable)

    def room(self) -> Room:
        """Return what of the arena can be exhausted."""
        return ArenaRoom(self._arena)

    def begin(self) -> None:
        """Take the baseline of the whole arena."""
        self._before = _native.snapshot(kinds=KINDS, arena=self._arena.view)
        self._end_preparation()

    def damaged_before(self) -> list[str]:
        """Return what the overlay already shows as changed or deleted in the baseline."""
        files = [one for one in _damaged(self._before) if one not in self._from_start]
        return [f"{one['state']} {one['class']} {one['path']}" for one in files if not self._target.owns(one["path"])]

    def observe(self) -> Report:
        """Settle, and return what is new since the baseline; what nothing ties to the arena is listed separately."""
        return self._since(self._before)

    def end_state(self) -> Mapping[str, int]:
        """Return what is in the arena, by other means than the oracle's."""
        return end_state(self._arena)

    def replaced(self) -> set[str]:
        """Return the keys of what is in the place of something else of the baseline at this moment."""
        return {leak.key for leak in self._since(self._before, settle_ms=0).leaks if leak.replaces}

    def mark(self, *, as_before: bool = False) -> None:
        """Take a second baseline of the whole arena, or use the first one again."""
        self._marked = self._before if as_before else _native.snapshot(kinds=KINDS, arena=self._arena.view)

    def observe_since_mark(self) -> list[Leak]:
        """Settle, and return what is new since the second baseline."""
        return self._since(self._marked).leaks

    def _since(self, before: _native.Snapshot, settle_ms: int | None = None) -> Report:
        try:
            text = _native.settle(
                before,
                first=self._before,
                settle_ms=self._settle_ms if settle_ms is None else settle_ms,
                attributed_only=True,
                waiting=None if self._turn is None else self._turn.lend,
            )
        finally:
            if self._turn is not None:
                self._turn.take_back()
        report = Report.from_json(text)
        leaks = [leak for leak in report.leaks if not self._is_scratch(leak)]
        for at, leak in enumerate(leaks):
            # It is no damage if the target changes its own state.
            if leak.class_ == "damaged" and leak.kind == "file" and self._target.owns(place_of(leak)):
                leaks[at] = msgspec.structs.replace(leak, class_="orphaned")
        return msgspec.structs.replace(report, leaks=leaks)

    def _is_scratch(self, leak: Leak) -> bool:
        return leak.kind == "file" and any(Path(place_of(leak)).is_relative_to(path) for path in self.scratch)


def _damaged(snapshot: _native.Snapshot) -> list[dict[str, Any]]:
    return [one for one in snapshot.resources("file") if one.get("state") in ("changed", "deleted")]
