"""Snapshots and guards of an arena, by the view that it is seen through. A directory stands for its one fresh root."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest
from waiting import wait_until

import leakcheck
from leakcheck import _native
from leakcheck.arena import Arena as RealArena


@pytest.fixture
def view(tmp_path: Path) -> Iterator[_native.ArenaView]:
    proc, root = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in ("/proc", tmp_path))
    try:
        yield _native.ArenaView(proc, [], [("/fresh", root)], [])
    finally:
        os.close(proc)
        os.close(root)


class Arena:
    def __init__(self, view: _native.ArenaView) -> None:
        self.view = view


def test_paths_are_those_inside(view: _native.ArenaView, tmp_path: Path) -> None:
    before = leakcheck.snapshot(kinds="file", arena=view)
    assert (before.scope, before.gauges["touched_files"]) == ("arena", 0)
    (tmp_path / "left").touch()
    after = leakcheck.snapshot(kinds="file", arena=Arena(view))
    assert [leak.label for leak in leakcheck.diff(before, after).leaks] == ["file /fresh/left"]
    with pytest.raises(leakcheck.LeakError, match="/fresh/left"):
        leakcheck.verify_none(before, settle=0)


def test_a_guard_takes_an_arena(view: _native.ArenaView, tmp_path: Path) -> None:
    # An ordinary user cannot read the mappings of others.
    unknown: Literal["raise", "ignore"] = "ignore" if os.geteuid() else "raise"
    guard = leakcheck.guard(kinds="file", settle=0, arena=view, on_unknown=unknown)
    with pytest.raises(leakcheck.LeakError, match="/fresh/left"), guard:
        (tmp_path / "left").touch()
    with guard:
        pass


@pytest.mark.parametrize("options", [{"scope": "tree:1"}, {"roots": ["/tmp"]}])
def test_an_arena_excludes_other_scopes_and_roots(view: _native.ArenaView, options: dict[str, object]) -> None:
    with pytest.raises(leakcheck.UsageError):
        leakcheck.snapshot(arena=view, **options)  # type: ignore[arg-type]


def test_descriptors_that_are_none_are_refused() -> None:
    with pytest.raises(leakcheck.UsageError):
        _native.ArenaView(-1, [], [], [])
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.ArenaView(999999, [], [], [])


def test_scope_arena_without_one_says_what_is_missing() -> None:
    with pytest.raises(leakcheck.UsageError, match="names no arena"):
        leakcheck.snapshot(scope="arena")


@pytest.mark.skipif(os.geteuid() != 0, reason="an arena of root; run as root")
def test_an_arena_whose_init_has_been_killed_is_no_empty_one() -> None:
    with RealArena() as arena, arena.popen(["/bin/sleep", "614"]) as command:
        before = leakcheck.snapshot(arena=arena)
        inside, spawner = psutil.Process(command.pid), psutil.Process(arena.spawner)
        # Its init ends once its spawner, which is the parent of both, runs again.
        spawner.suspend()
        try:
            psutil.Process(arena.init).kill()
            wait_until("the end of what was inside", lambda: inside.status() == psutil.STATUS_ZOMBIE)
            with pytest.raises(leakcheck.LeakcheckError, match="find PID 1 of the arena"):
                leakcheck.verify_none(before, settle=0)
        finally:
            spawner.resume()
