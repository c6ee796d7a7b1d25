"""Arenas come up whole or not at all, are what they say inside, and go without a trace."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from shown import SHOWN
from waiting import PATIENCE, wait_until

import leakcheck
from leakcheck._bin import helper
from leakcheck.arena import Arena, prepare_observation
from leakcheck.errors import ArenaError, TargetError
from leakcheck.warden import Warden, shutdown

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

LEFT_KINDS = "process,fd,mount,cgroup,ipc,net,lock,namespace"


@contextlib.contextmanager
def nothing_left() -> Generator[None, None, None]:
    shutdown()
    with leakcheck.guard(kinds=LEFT_KINDS, attributed_only=True, settle=2):
        yield
        # The warden stays for the next arena, with what it prepared for it.
        shutdown()


def output_of(arena: Arena, script: str, tmp_path: Path) -> str:
    path = tmp_path / "output"
    with path.open("wb") as file:
        assert arena.run(["/bin/sh", "-c", script], stdout=file.fileno(), stderr=file.fileno()) == 0, path.read_text()
    return path.read_text()


def test_an_arena_has_its_own_processes_mounts_network_host_name_and_cgroups(tmp_path: Path) -> None:
    with Arena(hostname="trial") as arena:
        assert output_of(arena, "hostname", tmp_path).strip() == "trial"
        namespaces = output_of(arena, "readlink /proc/self/ns/*", tmp_path).split()
        ours = [str(Path("/proc/self/ns", name).readlink()) for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts")]
        assert not set(ours) & set(namespaces)
        assert output_of(arena, "ls /sys/class/net", tmp_path).split() == ["lo"]
        assert {line.rsplit(":", 1)[1] for line in output_of(arena, "cat /proc/self/cgroup", tmp_path).split()} == {"/"}
        processes = output_of(arena, "ls /proc", tmp_path).split()
        assert len([name for name in processes if name.isdigit()]) == 3, "init, the shell and ls"


def test_what_is_written_anywhere_in_an_arena_is_not_on_the_host(tmp_path: Path) -> None:
    places = [
        "/etc/leakcheck-litter",
        "/root/litter",
        "/tmp/litter",
        "/var/lib/litter",
        "/dev/shm/litter",
        "/run/litter",
    ]
    with nothing_left(), Arena() as arena:
        for place in places:
            output_of(arena, f"echo x > {place}; cat {place}", tmp_path)
        assert arena.run(["/bin/rm", "/etc/hostname"]) == 0
    assert not [place for place in places if Path(place).exists()]
    assert Path("/etc/hostname").exists()


def test_everything_that_runs_in_an_arena_ends_with_it() -> None:
    with nothing_left():
        with Arena() as arena:
            arena.run(["/bin/sh", "-c", "setsid sleep 1000 & mount -t tmpfs x /mnt; mkdir /sys/fs/cgroup/*/sub; true"])
            running = arena.popen(["/bin/sleep", "1000"])
            pids = arena.pids()
            assert len(pids) == 2 and running.pid in pids
            assert running.poll() is None
        assert running.returncode == -9
        for pid in pids:
            assert not Path(f"/proc/{pid}").exists()


def test_a_cgroup_that_goes_while_processes_are_listed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena() as arena:
        running = arena.popen(["/bin/sleep", "1000"])
        going = Path(next(iter(arena.cgroups.values())), "going")
        going.mkdir()

        def read_late(path: Path) -> str:
            with path.open() as file:
                if path.parent == going:
                    going.rmdir()
                return file.read()

        monkeypatch.setattr(Path, "read_text", read_late)
        assert arena.pids() == {running.pid}
        assert not going.exists()


def test_exit_codes_and_signals_of_commands_come_back() -> None:
    with Arena() as arena:
        assert arena.run(["/bin/sh", "-c", "exit 3"]) == 3
        assert arena.run(["/bin/sh", "-c", "kill -SEGV $$"]) == -11
        slow = arena.popen(["/bin/sleep", "1000"])
        with pytest.raises(subprocess.TimeoutExpired):
            slow.wait(0.01)
        slow.kill()
        assert slow.wait(10) == -9


def test_a_command_that_does_not_exist_is_told_and_the_arena_goes_on() -> None:
    with Arena() as arena:
        with pytest.raises(TargetError, match="start /no/such: no such file"):
            arena.popen(["/no/such"])
        with pytest.raises(TargetError, match="working directory /no/where"):
            arena.popen(["/bin/true"], cwd="/no/where")
        assert arena.run(["/bin/true"]) == 0


def test_the_writable_layer_and_the_temporary_directories_can_be_filled(tmp_path: Path) -> None:
    with Arena(size=1 << 20) as arena:
        fill = "for place in /root /tmp; do dd if=/dev/zero of=$place/big bs=64k 2>&1; done; true"
        said = output_of(arena, fill, tmp_path)
        assert said.count("No space left on device") == 2


def test_a_bound_directory_is_there_and_can_be_read_only(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("hello")
    with Arena(binds=[(tmp_path, "/mnt/ro", True), (tmp_path, "/mnt/rw", False)]) as arena:
        assert arena.run(["/bin/sh", "-c", "grep -q hello /mnt/ro/given"]) == 0
        assert arena.run(["/bin/sh", "-c", "touch /mnt/ro/x 2>/dev/null"]) != 0
        assert arena.run(["/bin/sh", "-c", "touch /mnt/rw/x"]) == 0
    assert (tmp_path / "x").exists()


def test_limits_hold_for_all_that_runs_inside(tmp_path: Path) -> None:
    with Arena(limits={"pids.max": 8}) as arena, pytest.raises(AssertionError, match="Cannot fork"):
        output_of(arena, "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait", tmp_path)


def test_the_hosts_network_can_be_shared(tmp_path: Path) -> None:
    with Arena(network="host") as arena:
        assert output_of(arena, "readlink /proc/self/ns/net", tmp_path).strip() == str(
            Path("/proc/self/ns/net").readlink()
        )


def test_each_step_of_the_bring_up_may_fail_and_all_before_it_is_undone() -> None:
    with Arena() as arena:
        steps = arena.steps
    assert len(steps) > 10
    for step in steps:
        with nothing_left(), pytest.raises(ArenaError, match=re.escape(f'failed as asked; at step "{step}"')):
            Arena(fail_at=step).up()


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(leakcheck.UsageError, match="size 1"):
        Arena(size=1)
    with pytest.raises(leakcheck.UsageError, match="network 'none'"):
        Arena(network="none")
    with pytest.raises(leakcheck.UsageError, match="no such file"):
        Arena(binds=[(tmp_path / "nosuch", "/mnt", True)])
    with nothing_left(), pytest.raises(ArenaError, match=r"no\.such: no hierarchy here has it; at step .limits."):
        Arena(limits={"no.such": 1}).up()
    with nothing_left(), pytest.raises(ArenaError, match="device /dev/nosuch"):
        Arena(devices=["nosuch"]).up()


def test_an_arena_in_an_arena_comes_up_and_a_third_level_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    script = (
        "import sys; from leakcheck.arena import *\n"
        f"with Arena(binds={SHOWN!r}) as a: sys.exit(a.run(sys.argv[1:]) if sys.argv[1:] else 0)"
    )
    with Arena(binds=SHOWN) as arena:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert arena.run([sys.executable, "-c", script], env=env) == 0, "an arena in an arena"
        nested = [sys.executable, "-c", script, sys.executable, "-c", script]
        with (tmp_path / "said").open("wb") as file:
            assert arena.run(nested, env=env, stderr=file.fileno()) != 0
        assert "overlay" in (tmp_path / "said").read_text().splitlines()[-1]


def test_arenas_live_side_by_side_and_go_independently() -> None:
    with nothing_left():
        arenas = [Arena().up() for _ in range(5)]
        for number, arena in enumerate(arenas):
            assert arena.run(["/bin/sh", "-c", f"echo {number} > /tmp/number"]) == 0
        for number, arena in reversed(list(enumerate(arenas))):
            assert arena.run(["/bin/sh", "-c", f"grep -q {number} /tmp/number"]) == 0
            arena.down()


def test_arenas_may_be_used_from_several_threads() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with Arena() as arena:
                    assert arena.run(["/bin/true"]) == 0
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    with nothing_left():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_an_arena_outlives_no_forked_child_that_never_used_it() -> None:
    with Arena() as arena:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert arena.run(["/bin/true"]) == 0


def test_a_forked_child_of_the_same_number_has_no_warden(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where both are process 1, each of its pid namespace.
    number = os.getpid()
    with Arena():
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(os, "getpid", lambda: number)
            os._exit(int(Warden.running() is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert Warden.running() is not None


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_killed_at_any_instant_owner_warden_or_both_leave_nothing(count: int) -> None:
    program = Path(__file__).with_name("kill_at_random.py")
    done = subprocess.run(
        [sys.executable, program, str(count), "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_exit_status_is_lost_when_another_command_cannot_be_started() -> None:
    with Arena() as arena:
        for _ in range(30):
            running = [arena.popen(["/bin/true"]) for _ in range(3)]
            with pytest.raises(TargetError):
                arena.popen(["/no/such"])
            assert [one.wait(10) for one in running] == [0, 0, 0]


def test_a_symbolic_link_does_not_lead_a_bind_out_of_the_arena(tmp_path: Path) -> None:
    # Debian's /var/run is one, to the absolute path /run.
    given = tmp_path / "given"
    given.write_text("hello")
    places = ["/var/run/leakcheck-bound", "/../../srv/leakcheck-bound"]
    with Arena(binds=[(given, place, True) for place in places]) as arena:
        for place in ("/run/leakcheck-bound", "/srv/leakcheck-bound"):
            assert arena.run(["/bin/grep", "-q", "hello", place]) == 0
            assert not Path(place).exists()


def test_a_read_only_bind_is_so_below_its_mounts_too() -> None:
    with Arena(binds=[("/", "/mnt", True)]) as arena:
        assert arena.run(["/bin/sh", "-c", "touch /mnt/dev/shm/leakcheck-x 2>/dev/null"]) != 0
    assert not Path("/dev/shm/leakcheck-x").exists()


def test_arguments_and_environment_may_be_large_and_no_utf_8(tmp_path: Path) -> None:
    with Arena() as arena:
        env = {"PATH": "/usr/bin:/bin", "ODD": os.fsdecode(b"a\xff"), "BIG": "x" * 120_000, "BIGGER": "y" * 120_000}
        script = 'printf %s "$1$ODD"; [ ${#BIG} = 120000 ]'
        with (tmp_path / "output").open("wb") as file:
            argv = ["/bin/sh", "-c", script, "sh", os.fsdecode(b"\xfe")]
            assert arena.run(argv, env=env, stdout=file.fileno()) == 0
        assert (tmp_path / "output").read_bytes() == b"\xfea\xff"
        with pytest.raises(leakcheck.UsageError, match="zero byte"):
            arena.run(["/bin/echo", "a\0b"])


def test_an_exception_amid_a_request_leaves_the_next_arena_well() -> None:
    class TooLateError(Exception):
        pass

    def late(_number: int, _frame: object) -> None:
        raise TooLateError

    before = signal.signal(signal.SIGALRM, late)
    try:
        for number in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (number + 1))
            with contextlib.suppress(TooLateError, ArenaError), Arena():
                time.sleep(0.05)
            signal.setitimer(signal.ITIMER_REAL, 0)
            with Arena() as arena:
                assert arena.run(["/bin/true"]) == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_needs_an_arena_that_is_up_says_so() -> None:
    arena = Arena()
    for act in (lambda: arena.view, arena.pids, lambda: arena.how_to_enter, lambda: arena.popen(["/bin/true"])):
        with pytest.raises(leakcheck.UsageError, match="in an arena that is not up"):
            act()
    with arena, pytest.raises(leakcheck.UsageError, match="no command"):
        arena.run([])


def test_commands_that_ended_hold_no_descriptors() -> None:
    with Arena() as arena:
        arena.run(["/bin/true"])
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            arena.run(["/bin/true"])
            with arena.popen(["/bin/true"]) as process:
                assert process.wait(PATIENCE) == 0
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_command_that_takes_too_long_is_killed() -> None:
    with Arena() as arena:
        with pytest.raises(subprocess.TimeoutExpired):
            arena.run(["/bin/sleep", "600"], timeout=0.05)
        wait_until("the command is gone", lambda: not arena.pids())


def test_how_to_end_a_kept_arena_is_known_when_it_was_left_and_the_next_has_a_warden_of_its_own() -> None:
    with Arena(keep=True) as kept:
        pass
    told = re.search(r"nsenter -t (\d+) -a -r; end it: kill -TERM (\d+)", kept.how_to_enter)
    assert told
    warden = int(told[2])
    assert warden > 1
    pidfd = os.pidfd_open(warden)
    try:
        shutdown()
        with Arena() as arena:
            assert arena.run(["/bin/true"]) == 0
        assert Path(f"/proc/{told[1]}").exists()
        children = Path(f"/proc/{warden}/task/{warden}/children").read_text().split()
        assert len(children) == 1, "the kept arena's, and none that was prepared"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)
    os.waitpid(warden, 0)
    assert not Path(f"/proc/{told[1]}").exists()


def test_the_warden_starts_from_its_file_where_programs_in_memory_are_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_exec = 8  # MFD_NOEXEC_SEAL, as vm.memfd_noexec (memfd_create(2)) sets it for every such file
    create = os.memfd_create
    for flags, name in ((no_exec, str(helper("warden"))), (0, "/memfd:warden (deleted)")):
        monkeypatch.setattr(os, "memfd_create", lambda name, given, flags=flags: create(name, given | flags))
        shutdown()
        with Arena() as arena:
            assert str(Path(f"/proc/{arena.init}/exe").readlink()) == name
    shutdown()


def test_all_of_an_arenas_directories_have_the_size_that_was_given(tmp_path: Path) -> None:
    with Arena(size=1 << 20) as arena:
        said = output_of(arena, "df --output=size -k /dev /tmp /run /var/tmp /dev/shm | tail -n +2", tmp_path)
    assert said.split() == ["1024"] * 5


def test_in_a_chroot_commands_run_in_the_arena_and_not_at_the_root_of_its_mount_namespace(tmp_path: Path) -> None:
    # Where a chroot's root was made a mount point, entering a mount namespace leads to the root above it.
    script = "\n".join(
        [
            "import sys; from leakcheck.arena import Arena",
            "with Arena() as arena: sys.exit(arena.run(['/bin/sh', '-c', 'echo x > /srv/litter; ls -id /']))",
        ]
    )
    outer = 'mount --rbind / /mnt && exec chroot /mnt "$@"'
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Arena(binds=SHOWN) as arena:
        argv = ["/bin/sh", "-c", outer, "sh", sys.executable, "-c", script]
        with (tmp_path / "said").open("wb") as file:
            assert arena.run(argv, env=env, stdout=file.fileno(), stderr=file.fileno()) == 0, (
                tmp_path / "said"
            ).read_text()
        assert arena.run(["/usr/bin/test", "-e", "/srv/litter"]) == 1, "it was written to the outer root"
    assert not Path("/srv/litter").exists()


@pytest.mark.parametrize("settings", [True, False])
def test_who_looks_soon_leaves_no_thread_when_it_is_over(settings: bool) -> None:
    before = set(threading.enumerate())
    over = prepare_observation(settings=settings)
    threads = set(threading.enumerate()) - before
    over()
    for thread in threads:
        thread.join(5)
    assert not set(threading.enumerate()) - before


def open_settings() -> int:
    """How many settings this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(link.readlink()).startswith("/proc/sys/")
    return found


def test_settings_that_are_read_before_a_guard_stay_open_until_its_end() -> None:
    before = open_settings()
    over = prepare_observation()
    with Arena() as arena:
        over()
        assert open_settings() > before + 50
        guarded = leakcheck.guard(arena=arena, settle=0.2)
        with guarded:
            del over
            assert arena.run(["/bin/true"]) == 0
            assert open_settings() > before + 50
    assert guarded.report is not None
    assert guarded.report.verdict == "clean"
    assert open_settings() == before
