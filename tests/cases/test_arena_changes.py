"""What a run changes in an arena beside the files of the host is found, and its limits hold."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leakcheck import _native
from leakcheck.arena import Arena

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

CGROUPS = Path("/sys/fs/cgroup")
V1 = (CGROUPS / "pids").is_dir()


@pytest.fixture
def changes() -> Callable[..., list[str]]:
    """Return what a script in an arena is found to have left: the labels of its files, sorted."""

    def run(script: str, *, limits: dict[str, int] | None = None) -> list[str]:
        with Arena(limits=limits) as arena:
            guard = _native.Guard(arena=arena.view, attributed_only=True, settle_ms=100, kinds="file,cgroup")
            code = arena.run(["/bin/sh", "-c", script], stdout=subprocess.DEVNULL, cwd="/")
            report = json.loads(guard.end(["sh"], code))
            assert code == 0
        assert report["coverage"]["file"]["level"] == "full"
        return sorted(leak["label"] for leak in report["leaks"])

    return run


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("rm /dev/null", ["deleted char /dev/null"]),
        ("chmod 600 /dev/null", ["changed char /dev/null"]),
        ("chown 7 /dev/zero", ["changed char /dev/zero"]),
        ("chmod 700 /dev /tmp", ["changed dir /dev", "changed dir /tmp"]),
        ("rm /dev/null; echo >/dev/null", ["deleted char /dev/null", "file /dev/null"]),
        ("rm /dev/fd; ln -s nowhere /dev/fd", ["deleted symlink /dev/fd", "symlink /dev/fd"]),
        ("mv /dev/full /dev/empty; mv /dev/empty /dev/full; :", []),
        ("chmod 600 /dev/null; chmod 666 /dev/null; touch /dev/null; echo > /dev/null", []),
        ("rmdir /run/lock", ["deleted dir /run/lock"]),
        ("mkdir /dev/x; rmdir /dev/x; touch /tmp/x; rm /tmp/x", []),
    ],
)
def test_what_was_there_and_is_another_now(script: str, found: list[str], changes: Callable[..., list[str]]) -> None:
    assert changes(script) == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("umount -l /proc", ["deleted mount /proc"]),
        ("umount -l /tmp; mkdir /tmp/x", ["deleted mount /tmp"]),
        ("mount -o remount,bind,ro /proc", ["changed mount /proc"]),
        ("mount --make-shared /", ["changed mount /"]),
        ("mount --move /tmp /mnt", ["changed mount /tmp"]),
        ("mount -o remount,bind,ro /proc; mount -o remount,bind,rw /proc", []),
        ("mount --make-shared /; mount --make-private /", []),
        ("unshare -m sh -c 'umount -l /tmp; mount --make-rshared /'", []),
    ],
)
def test_a_mount_that_was_there_and_is_gone_or_another_now(
    script: str, found: list[str], changes: Callable[..., list[str]]
) -> None:
    left = changes(script)
    assert [label for label in left if " mount " in label] == found
    if not found:
        assert left == []


def test_an_attribute_that_an_overlay_has_for_itself_is_a_change_where_the_run_wrote_it(
    changes: Callable[..., list[str]],
) -> None:
    code = "import os, sys; os.setxattr('/etc', b'trusted.overlay.opaque', b'y')"
    found = changes(f'{sys.executable} -c "{code}" || echo >/etc/refused')
    # Before Linux 6.7 an overlay takes none.
    assert found in (["changed dir /etc"], ["file /etc/refused"])


def test_an_access_list_of_a_device_is_a_change(changes: Callable[..., list[str]]) -> None:
    # Version 2; then tag, permissions and id of each entry (acl(5); linux/posix_acl_xattr.h).
    entries = "(1, 6, 0xffffffff), (2, 6, 7), (4, 6, 0xffffffff), (16, 6, 0xffffffff), (32, 6, 0xffffffff)"
    packed = f"struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in ({entries}))"
    program = f"import os, struct, sys; os.setxattr(sys.argv[1], 'system.posix_acl_access', {packed})"
    for path, label in (("/dev/null", "changed char /dev/null"), ("/etc/hostname", "changed file /etc/hostname")):
        assert changes(f'/usr/bin/python3 -c "{program}" {path}') == [label]


@pytest.mark.parametrize("count", [1, 30, 400])
def test_attributes_are_changes_however_many_there_are(count: int, changes: Callable[..., list[str]]) -> None:
    # The kernel lists at most 64 KiB of names.
    each = f"for p in sys.argv[1:] for n in range({count})"
    program = f"import os, sys; [os.setxattr(p, 'trusted.' + 'a' * 200 + str(n), b'') {each}]"
    changed = changes(f'/usr/bin/python3 -c "{program}" /etc /etc/hostname /dev/null /dev')
    assert changed == ["changed char /dev/null", "changed dir /dev", "changed dir /etc", "changed file /etc/hostname"]


def test_each_look_sees_what_changed_since_the_one_before() -> None:
    steps = [
        ("mount -o remount,bind,ro /proc", ["changed mount /proc"]),
        ("mount -o remount,bind,rw /proc", []),
        ("mount --make-shared /tmp; echo > /var/tmp/x", ["changed mount /tmp", "file /var/tmp/x"]),
        ("mount --make-private /tmp; rm /var/tmp/x; mkdir /tmp/dir", ["dir /tmp/dir"]),
        ("rmdir /tmp/dir; chmod 700 /run; chmod 755 /run; chmod 700 /srv", ["changed dir /srv"]),
        ("chmod 755 /srv; mount -t tmpfs none /tmp; mkdir /tmp/hidden", []),
        ("umount /tmp; mount -t tmpfs -o ro none /tmp; mkdir /run/new-one", ["dir /run/new-one"]),
        ("umount /tmp; rmdir /run/new-one; chmod 600 /dev/full", ["changed char /dev/full"]),
    ]  # fmt: skip
    with Arena() as arena:
        before = _native.snapshot(arena=arena.view, kinds="file")
        for script, expected in steps:
            assert arena.run(["/bin/sh", "-ec", script], cwd="/") == 0, script
            after = _native.snapshot(arena=arena.view, kinds="file")
            leaks = json.loads(_native.diff(before, after))["leaks"]
            assert sorted(leak["label"] for leak in leaks) == expected, script


@pytest.mark.skipif(not V1, reason="the hierarchies stand in no tmpfs here")
def test_what_is_made_in_the_tmpfs_of_the_cgroups_is_found(changes: Callable[..., list[str]]) -> None:
    made = (("dir", "a"), ("dir", "a/b"), ("file", "litter"), ("symlink", "link"))
    script = f"cd {CGROUPS}; touch litter; mkdir dir; ln -s x link; rmdir dir; mkdir -p a/b"
    assert changes(script) == [f"{what} {CGROUPS}/{name}" for what, name in made]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("chattr +i /etc/hostname", ["changed file /etc/hostname"]),
        ("chattr +a /etc/hostname", ["changed file /etc/hostname"]),
        ("chattr +i /srv /etc", ["changed dir /etc", "changed dir /srv"]),
        ("chattr +i /etc/hostname; chattr -i /etc/hostname", []),
        ("chattr +i /", ["changed dir /"]),
    ],
)
def test_flags_that_protect_a_file_are_changes(
    script: str, found: list[str], changes: Callable[..., list[str]]
) -> None:
    with Arena() as arena:
        # On a tmpfs below, chattr fails, but only after the overlay has taken the flag.
        look = "chattr +i /etc/hostname 2>/dev/null; lsattr /etc/hostname | grep -q '^----i'"
        if arena.run(["/bin/sh", "-c", look]) != 0:
            pytest.skip("no such flags in an overlay here (Linux 5.15), or no chattr")
    assert changes(script + "; :") == found


@pytest.mark.skipif(not V1, reason="no v1 hierarchies here")
def test_settings_of_the_arenas_own_cgroups_are_changes(changes: Callable[..., list[str]]) -> None:
    script = (
        f"echo 50 > {CGROUPS}/pids/pids.max; echo 512 > {CGROUPS}/cpu/cpu.shares; "
        f"echo 50000 > {CGROUPS}/cpu/cpu.cfs_quota_us"
    )
    assert changes(script) == [
        f"changed file {CGROUPS}/cpu/cpu.cfs_quota_us",
        f"changed file {CGROUPS}/cpu/cpu.shares",
        f"changed file {CGROUPS}/pids/pids.max",
    ]
    assert changes(f"echo 50 > {CGROUPS}/pids/pids.max; echo max > {CGROUPS}/pids/pids.max") == []


# Its exit code is how many children it had at a time.
FORKS = """import os, time
n = 0
while n < 40:
    try:
        if not os.fork():
            time.sleep(3)
            os._exit(0)
    except OSError:
        break
    n += 1
raise SystemExit(n)
"""
FILES = {"pids.max": "pids", "memory.limit_in_bytes": "memory", "cpuset.cpus": "cpuset"}


@pytest.mark.parametrize("name", FILES)
def test_a_limit_cannot_be_lifted_from_inside(name: str) -> None:
    directory = CGROUPS / FILES[name]
    if not V1 or not (directory / name.replace("pids.max", "cgroup.procs")).exists():
        pytest.skip("no such v1 hierarchy here")
    value = {"pids.max": "12", "memory.limit_in_bytes": str(64 << 20), "cpuset.cpus": "0"}[name]
    with Arena(limits={name: value}) as arena:
        mine = Path(arena.cgroups[FILES[name]])
        assert (mine.parent / name).read_text().strip() == value
        assert (mine / name).read_text().strip() == value, "who asks inside is told"
        lift = f"""cd {directory}; for v in max -1 0-1; do echo $v > {name}; done; mkdir x; echo 0 > x/cgroup.procs
            mkdir /mnt/c; mount -t cgroup -o {FILES[name]} c /mnt/c; echo max > /mnt/c/{name}"""
        arena.run(["/bin/sh", "-c", lift], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert (mine.parent / name).read_text().strip() == value
        if name == "pids.max":
            assert arena.run(["/usr/bin/python3", "-c", FORKS]) < 12
        else:
            assert arena.run(["/bin/true"]) == 0
        top = mine.parent
    assert not top.exists()


def test_several_limits_of_one_hierarchy_and_unknown_ones() -> None:
    if not V1:
        pytest.skip("no v1 hierarchies here")
    with Arena(limits={"cpu.shares": 100, "cpu.cfs_quota_us": 50000, "pids.max": 100}) as arena:
        own = Path(arena.cgroups["cpu"]).parent
        assert [(own / name).read_text().strip() for name in ("cpu.shares", "cpu.cfs_quota_us")] == ["100", "50000"]
        assert arena.run(["/bin/true"]) == 0


def test_the_directories_of_run_that_tools_make_once_are_there_as_on_the_host(case: Callable[..., Any]) -> None:
    use = "mount -t tmpfs x /mnt && umount /mnt && ls -ld /run/netns /run/xtables.lock /run/lock && ls -A /run/systemd"
    made = "mkdir -m 700 mount netns; mkdir -p systemd/system; touch xtables.lock"
    host = f"mount -t tmpfs none /run; cd /run; {made}"
    guard = f"leakcheck guard --arena --settle 0.1 -- sh -c '{use}'"
    seen = case("unshare", "-m", "sh", "-ec", f"{host}\n{guard}")
    assert seen.code == 0, seen.text
    assert seen.text.startswith("drwxrwxrwt") and "drwx------" in seen.text and "system\n" not in seen.text
    seen = case("unshare", "-m", "sh", "-ec", f"mount -t tmpfs none /run\n{guard.replace(use, 'mkdir /run/made')}")
    assert seen.code == 1 and "dir /run/made" in seen.text
