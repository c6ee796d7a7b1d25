"""Plans of exhausted resources: one line each, which parses back; and what is exhausted is the arena's alone."""

import os
import re
import resource
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors import Plan, parse
from injectors.cgroup_limits import Cpu, Memory, Processes
from injectors.exhaustion import MOMENTS, RESOURCES, Exhaustion, exhaustion_plan
from injectors.resources import Disk, Files, Limit
from leakcheck.arena import Arena
from leakcheck.errors import UnavailableError, UsageError
from leakcheck.trials.arena_room import ArenaRoom

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

WAYS = ["disk:full@0", "disk:full@16M", "disk:inodes@3", "fd:limit=8", "memory:pressure=90%", "memory:full@64K"]
WAYS += ["cpu:saturate", "cpu:saturate@high", "cpu:quota=5%", "pids:limit=0"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_each_plan_prints_the_line_that_it_is_parsed_from(way: str, moment: str) -> None:
    kind, _, how = way.partition(":")
    plan = exhaustion_plan(kind, how, moment)  # type: ignore[arg-type]
    assert parse(str(plan)) == plan
    assert Exhaustion.of(plan).moment == moment


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("disk:full@", "'full@' is no way"),
        ("disk:full@16X", "is no way"),
        ("disk", "'nothing' is no way"),
        ("fd:limit=2", "N from 3"),
        ("fd:full@1", "is no way"),
        ("memory:pressure=0%", "is no way"),
        ("memory:pressure=101%", "is no way"),
        ("cpu:quota=20", "is no way"),
        ("pids:limit=-1", "is no way"),
        ("disk:full@0,soon", "'soon' is no flag"),
        ("disk:full@0,under,cleanup", "'cleanup' is no flag at this place"),
        ("fd:limit=8,under", "under a full disk only"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_part_that_is_wrong(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        parse(line)


@given(st.sampled_from(RESOURCES), st.text(alphabet="fulimtnodes@=%0123456789KMG", max_size=14))
def test_any_other_word_is_refused_or_parses_back(kind: str, how: str) -> None:
    plan = Plan(kind, how)
    try:
        Exhaustion.of(plan)
    except UsageError:
        return
    assert parse(str(plan)) == plan


@pytest.fixture
def arena() -> Generator[Arena, None, None]:
    with Arena() as arena:
        yield arena


def shell(arena: Arena, script: str, tmp_path: Path) -> str:
    with (tmp_path / "output").open("w+b") as output:
        arena.run(["/bin/bash", "-c", script], stdout=output.fileno(), stderr=output.fileno(), timeout=30)
        output.seek(0)
        return output.read().decode()


@needs_root
@pytest.mark.parametrize(
    ("limit", "script", "error"),
    [
        (Disk("full", 0), "for d in /root /tmp /run /dev/shm; do echo x > $d/one; done", "No space left"),
        (Disk("full", 8192), "head -c 12288 /dev/zero > /run/one", "No space left"),
        (Disk("inodes", 0), "mkdir /run/one", "No space left"),
        (Disk("inodes", 1), "mkdir /run/one && mkdir /run/two", "No space left"),
    ],
)
def test_a_full_disk_lacks_room_until_it_is_released(
    arena: Arena, tmp_path: Path, limit: Limit, script: str, error: str
) -> None:
    room, here = ArenaRoom(arena), os.statvfs(tmp_path)
    before = [os.fstatvfs(fd).f_blocks for _, fd in room.file_systems()]
    limit.set(room, 0)
    assert limit.holds(room)
    assert error in shell(arena, script, tmp_path)
    # The file system of the host is as large as before.
    assert (os.statvfs(tmp_path).f_blocks, os.statvfs(tmp_path).f_files) == (here.f_blocks, here.f_files)
    limit.lift(room)
    assert not limit.holds(room)
    assert [os.fstatvfs(fd).f_blocks for _, fd in room.file_systems()] == before
    assert shell(arena, f"rm -rf /run/one /run/two; {script}", tmp_path) == ""


@needs_root
def test_what_a_full_disk_has_left_can_be_written(arena: Arena, tmp_path: Path) -> None:
    limit, room = Disk("full", 8192), ArenaRoom(arena)
    limit.set(room, 0)
    assert shell(arena, "head -c 8192 /dev/zero > /run/one", tmp_path) == ""
    assert "was left on /run" in limit.proof(room)


def under(arena: Arena, limit: Limit, script: str, tmp_path: Path) -> str:
    """Return what a script prints that was started before the limit, and goes on under it."""
    shell(arena, "mkfifo /run/go", tmp_path)
    with (tmp_path / "out").open("w+b") as out:
        argv = ["/bin/bash", "-c", f"read x < /run/go; {script}"]
        with arena.popen(argv, stdout=out.fileno(), stderr=out.fileno()) as process:
            limit.set(ArenaRoom(arena), 0)
            # It may never open the other end, if the limit ends it before: who opens both ends waits for nobody.
            go = os.open(f"/proc/{arena.init}/root/run/go", os.O_RDWR)
            try:
                os.write(go, b"\n")
                process.wait(60)
            finally:
                os.close(go)
        return (tmp_path / "out").read_text()


@needs_root
def test_no_more_descriptors_than_the_limit_are_there_and_our_own_limit_stays(arena: Arena, tmp_path: Path) -> None:
    ours, limit = resource.getrlimit(resource.RLIMIT_NOFILE), Files(5)
    script = "exec 3</dev/null 4</dev/null; echo two; exec 5</dev/null && echo three"
    said = under(arena, limit, script, tmp_path)
    assert "two" in said
    assert "three" not in said
    limit.lift(ArenaRoom(arena))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == ours


@needs_root
def test_processes_are_refused_and_counted_until_the_release(arena: Arena, tmp_path: Path) -> None:
    limit, room = Processes(1), ArenaRoom(arena)
    said = under(arena, limit, "(echo first); sleep 0 & sleep 0 & sleep 0 & wait", tmp_path)
    assert "first" in said
    assert "Resource temporarily unavailable" in said
    assert "refused" in limit.proof(room)
    limit.lift(room)
    assert shell(arena, "(echo one); (echo two)", tmp_path) == "one\ntwo\n"


@needs_root
def test_memory_is_short_in_the_arena_and_not_outside(arena: Arena, tmp_path: Path) -> None:
    limit, room = Memory(4 << 20), ArenaRoom(arena)
    script = "dd if=/dev/zero of=/dev/null bs=32M count=1"
    assert "bytes" not in under(arena, limit, script, tmp_path)
    assert limit.killed
    assert "reached" in limit.proof(room)
    assert len(bytearray(32 << 20)) == 32 << 20
    limit.lift(room)
    assert "33554432 bytes" in shell(arena, script, tmp_path)


@needs_root
def test_what_keeps_an_arena_up_is_above_a_limit_of_memory(arena: Arena, tmp_path: Path) -> None:
    limit, room = Memory(0), ArenaRoom(arena)
    for _ in range(3):
        under(arena, limit, "dd if=/dev/zero of=/dev/null bs=32M count=1", tmp_path)
        limit.lift(room)
        assert shell(arena, "rm /run/go; echo up", tmp_path) == "up\n"


@needs_root
def test_a_balloon_and_spinners_are_gone_after_the_release(arena: Arena) -> None:
    room = ArenaRoom(arena)
    for limit in (Memory(6 << 20, balloon=58 << 20), Cpu(), Cpu(nice=-10)):
        limit.set(room, 0)
        assert arena.pids()
        limit.lift(room)
        assert arena.pids() == set()


@needs_root
def test_a_machine_without_room_for_the_balloon_says_so(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("injectors.cgroup_limits._available", lambda: 100 << 20)
    with pytest.raises(UnavailableError, match="no room for the balloon: this machine has 100 MiB"):
        Memory(6 << 20, balloon=58 << 20).set(ArenaRoom(arena), 0)
    assert arena.pids() == set()


@needs_root
def test_a_machine_without_the_controller_says_so(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "cgroups", {"v2": arena.cgroups.get("v2", "/nowhere")})
    with pytest.raises(UnavailableError, match="no pids limit can be set"):
        Processes(1).set(ArenaRoom(arena), 0)


@needs_root
def test_a_quota_is_used_up_by_who_computes(arena: Arena, tmp_path: Path) -> None:
    limit, room = Cpu(share=10), ArenaRoom(arena)
    limit.set(room, 0)
    shell(arena, "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done", tmp_path)
    assert "used up" in limit.proof(room)
    limit.lift(room)
    assert not limit.holds(room)
