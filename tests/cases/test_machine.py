"""What no namespace isolates: settings of the kernel, and keys, loop devices and BPF objects made in an arena."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import leakcheck
from leakcheck import Arena, _native
from leakcheck._bin import helper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change settings of the machine")

LEAKCHECK = Path(sys.executable).with_name("leakcheck")
INTERVAL = Path("/proc/sys/vm/stat_interval")
SLEEP = Path("/sys/kernel/mm/ksm/sleep_millisecs")


def writable(path: Path) -> bool:
    try:
        with path.open("r+"):
            return True
    except OSError:
        return False


needs_sysctl = pytest.mark.skipif(not writable(INTERVAL), reason="/proc/sys cannot be written here: a container")
needs_ksm = pytest.mark.skipif(not writable(SLEEP), reason="this kernel has no KSM, or its knobs cannot be written")


@pytest.fixture(autouse=True)
def settings_of_our_own() -> Generator[None, None, None]:
    """Wait for other suites on this machine: who puts a setting back must not put back another's change."""
    with Path(os.devnull).open() as known_to_all:
        fcntl.flock(known_to_all, fcntl.LOCK_EX)
        yield


@pytest.fixture(params=[pytest.param(INTERVAL, marks=needs_sysctl), pytest.param(SLEEP, marks=needs_ksm)])
def knob(request: pytest.FixtureRequest) -> Generator[Path, None, None]:
    path: Path = request.param
    before = path.read_text()
    yield path
    path.write_text(before)


def guard(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [LEAKCHECK, "guard", "--json", "--settle", "0.1", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def settings(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    resources = [leak["evidence"]["resource"] for leak in report["leaks"] if leak["kind"] == "sysctl"]
    return [(r["path"], r["before"], r["value"]) for r in resources]


@pytest.mark.parametrize("where", [["--kinds", "sysctl"], ["--arena"]], ids=["host", "arena"])
def test_a_setting_that_is_changed_is_a_leak_with_its_value_before_and_after(where: list[str], knob: Path) -> None:
    before = int(knob.read_text())
    code, report = guard(*where, "--", "sh", "-c", f"echo {before + 3} > {knob}")
    assert code == 1
    assert settings(report) == [(str(knob), str(before), str(before + 3))]


@needs_sysctl
def test_a_setting_that_is_changed_and_changed_back_is_clean() -> None:
    before = int(INTERVAL.read_text())
    code, report = guard(
        "--kinds", "sysctl", "--", "sh", "-c", f"echo {before + 3} >{INTERVAL}; echo {before} >{INTERVAL}"
    )
    assert (code, report["leaks"]) == (0, [])


@needs_sysctl
def test_a_setting_that_is_changed_over_and_over_is_a_leak(tmp_path: Path) -> None:
    before = int(INTERVAL.read_text())
    begin, stop = tmp_path / "begin", tmp_path / "stop"
    wait = f"until [ -e {begin} ]; do sleep 0.01; done"
    loop = f"i=1; until [ -e {stop} ]; do i=$((i + 1)); echo $(({before} + i)) >{INTERVAL}; sleep 0.01; done"
    other = subprocess.Popen(["sh", "-c", f"{wait}; {loop}"], stdin=subprocess.DEVNULL)
    try:
        code, report = guard("--kinds", "sysctl", "--", "sh", "-c", f"touch {begin}; sleep 0.5")
    finally:
        stop.touch()
        other.wait(10)
        INTERVAL.write_text(str(before))
    assert code == 1
    assert [path for path, _, _ in settings(report)] == [str(INTERVAL)]


@needs_sysctl
def test_two_saved_snapshots_show_what_was_set_between_them(tmp_path: Path) -> None:
    before = int(INTERVAL.read_text())
    first = _native.snapshot(kinds="sysctl")
    INTERVAL.write_text(str(before + 1))
    try:
        last = _native.snapshot(kinds="sysctl")
    finally:
        INTERVAL.write_text(str(before))
    first.save(str(tmp_path / "first"))
    last.save(str(tmp_path / "last"))
    done = subprocess.run(
        [LEAKCHECK, "diff", tmp_path / "first", tmp_path / "last"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"vm.stat_interval = {before + 1} (was {before})" in done.stderr
    assert "vanished" not in done.stderr


@needs_sysctl
def test_reap_says_the_command_and_sets_nothing(tmp_path: Path) -> None:
    before = int(INTERVAL.read_text())
    report = tmp_path / "report"
    try:
        guard("--kinds", "sysctl", "-o", str(report), "--", "sh", "-c", f"echo {before + 1} >{INTERVAL}")
        done = subprocess.run(
            [LEAKCHECK, "reap", "--yes", "--diff", report], capture_output=True, text=True, check=False
        )
        assert INTERVAL.read_text().strip() == str(before + 1)
    finally:
        INTERVAL.write_text(str(before))
    assert f"echo {before} > {INTERVAL}" in done.stdout + done.stderr


def test_the_settings_of_a_namespace_that_the_run_made_are_no_leak() -> None:
    change = "sysctl -qw kernel.shmmni=4000 net.ipv4.ip_forward=1; echo inner >/proc/sys/kernel/hostname"
    code, report = guard("--kinds", "sysctl", "--", "unshare", "-iun", "sh", "-c", change)
    assert (code, report["leaks"]) == (0, [])


def test_what_the_kernel_changes_by_itself_is_no_setting() -> None:
    first = _native.snapshot(kinds="sysctl")
    for _ in range(20):
        subprocess.run(["true"], check=True)
    assert json.loads(_native.diff(first, _native.snapshot(kinds="sysctl")))["leaks"] == []
    paths = {resource["path"] for resource in first.resources("sysctl")}
    assert "/proc/sys/kernel/core_pattern" in paths
    assert not paths & {"/proc/sys/vm/stat_refresh", "/proc/sys/kernel/ns_last_pid", "/proc/sys/fs/file-nr"}


KEYS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
KEYRING = -4  # KEY_SPEC_USER_KEYRING
if sys.argv[1] == "add":
    sys.exit(libc.syscall(248, b"user", sys.argv[2].encode(), b"x", 1, KEYRING) < 0)
else:
    serial = libc.syscall(250, 10, KEYRING, b"user", sys.argv[2].encode(), 0)
    libc.syscall(250, 9, serial, KEYRING)
"""


def recorded() -> bool:
    """Whether an arena's calls can be recorded here: see the table in docs/explanation/arena.md."""
    in_first = Path("/proc/self/ns/cgroup").stat().st_ino == 0xEFFFFFFB
    v2 = any(line.split(" ")[2] == "cgroup2" for line in Path("/proc/mounts").read_text().splitlines())
    return in_first and v2 and Path("/proc/keys").exists()


needs_recorder = pytest.mark.skipif(not recorded(), reason="no keys, or no cgroup v2 of the first cgroup namespace")


@pytest.fixture
def key_name() -> Generator[str, None, None]:
    name = f"case-key-{os.getpid()}"
    yield name
    subprocess.run([sys.executable, "-c", KEYS, "remove", name], check=True, stdout=subprocess.DEVNULL)


@needs_recorder
def test_a_key_that_an_arena_leaves_is_its_leak(key_name: str) -> None:
    code, report = guard("--arena", "--", "python3", "-c", KEYS, "add", key_name)
    assert code == 1
    leaks = [(leak["kind"], leak["attribution"]) for leak in report["leaks"]]
    assert leaks == [("key", "creator")]


@needs_recorder
def test_a_keyring_that_only_has_the_name_of_the_users_own_is_a_leak() -> None:
    ring = f"import ctypes; ring = ctypes.CDLL(None).syscall(248, b'keyring', b'_uid.{os.geteuid()}', 0, 0, -4)"
    remove = "ctypes.CDLL(None).syscall(250, 9, ring, -4)"
    code, report = guard("--arena", "--kinds", "key", "--", "python3", "-c", f"{ring}; {remove}")
    assert (code, report["leaks"]) == (0, [])
    code, report = guard("--arena", "--kinds", "key", "--", "python3", "-c", ring)
    serial = report["leaks"][0]["evidence"]["resource"]["serial"]
    subprocess.run([sys.executable, "-c", f"import ctypes; ring = {serial}; {remove}"], check=True)
    assert code == 1


@needs_recorder
def test_a_key_that_somebody_else_adds_meanwhile_is_none_of_an_arena(key_name: str, tmp_path: Path) -> None:
    begin = tmp_path / "begin"
    begin.mkdir()
    wait = f"until [ -e {begin}/now ]; do sleep 0.01; done"
    other = ["sh", "-c", f'{wait}; "$@"; touch {begin}/done', "sh", sys.executable, "-c", KEYS, "add", key_name]
    adding = subprocess.Popen(other, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # The arena asks for keys too: what it was told of is none of those.
        ask = f"touch /mnt/now; until [ -e /mnt/done ]; do sleep 0.01; done; python3 -c '{KEYS}' remove no-such-key"
        code, report = guard("--arena", "--bind", f"{begin}:/mnt", "--", "sh", "-c", ask)
    finally:
        (begin / "now").touch()
        adding.wait(120)
    assert "key" not in {leak["kind"] for leak in report["leaks"]}
    assert report["coverage"]["key"]["level"] == "full"
    del code


@needs_recorder
def test_a_loop_device_or_bpf_object_of_others_is_noise_to_an_arena() -> None:
    with subprocess.Popen(
        [helper("mkleak"), "bpf-map", "--hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin and other.stdout
        if not other.stdout.readline().startswith("WAITING"):
            pytest.skip("no BPF map can be made here")
        view = Arena()
        with view, leakcheck.guard(arena=view, kinds="bpf", settle=0.1) as guarded:
            other.stdin.write("\n")
            other.stdin.flush()
            other.stdout.readline()
        assert guarded.report is not None and guarded.report.verdict == "clean"
        other.stdin.close()


@needs_sysctl
def test_an_arena_shows_the_case_as_leaked(case: Callable[..., Any]) -> None:
    outcome = case("sh", "{sysctl_in_arena.sh}")
    assert outcome.exits[-1] == 1


CHANGE_FD = """
import fcntl, os, sys
os.mknod("/dev/case", 0o60600, int(sys.argv[1]))
device = os.open("/dev/case", os.O_RDONLY)
os.truncate(os.open("/root/image", os.O_CREAT | os.O_RDWR), 1 << 20)
fcntl.ioctl(device, 0x4C06, os.open("/root/image", os.O_RDONLY))  # LOOP_CHANGE_FD
os.unlink("/dev/case")
os.unlink("/root/image")
"""


@needs_recorder
def test_another_file_behind_a_loop_device_of_the_host_is_a_leak(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 1 << 20)
    attach = ["losetup", "--read-only", "--find", "--show", str(image)]
    attached = subprocess.run(attach, capture_output=True, text=True, check=False)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr}")
    device = attached.stdout.strip()
    try:
        number = str(Path(device).stat().st_rdev)
        code, report = guard("--arena", "--kinds", "loop", "--", "python3", "-c", CHANGE_FD, number)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert report["command"]["exit"] == 0
    assert (code, [leak["kind"] for leak in report["leaks"]]) == (1, ["loop"])
