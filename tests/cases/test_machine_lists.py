"""Lists of the whole machine that something lies over, or that do not show everything: /proc/locks, /proc/keys."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

# A pid and IPC namespace of its own: what the case leaves ends with it.
ALONE = ("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
# As in a container: a process without the right to mount cannot read a list below another mount.
MAY_NOT_MOUNT = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin"
SEGMENT = "ipcmk -M 100"
LOCK = "flock /mnt sleep 20 </dev/null >/dev/null 2>&1 & sleep 0.3"
COVER = {
    "locks": "mount --bind /dev/null /proc/locks",
    "sysvipc": "mount -t tmpfs none /proc/sysvipc",
    "subset": "mount -t proc -o subset=pid proc /proc",
}


def guard(before: str, rights: str, kind: str, run: str, directory: Path) -> dict[str, Any]:
    report = directory / "report.json"
    command = f"leakcheck guard --kinds {kind} --settle 0.1 -o {report} -- sh -c '{run}'"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(
        [*ALONE, "sh", "-c", f"{before}\n{rights} {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        timeout=60,
        check=False,
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.mark.parametrize(
    ("kind", "cover", "run"),
    [
        ("lock", "locks", LOCK),
        ("lock", "subset", LOCK),
        ("ipc", "sysvipc", SEGMENT),
        ("ipc", "subset", SEGMENT),
    ],
)
def test_a_list_with_something_over_it_is_read_all_the_same(kind: str, cover: str, run: str, tmp_path: Path) -> None:
    report = guard(COVER[cover], "", kind, run, tmp_path)
    assert report["verdict"] == "leaked"
    assert {leak["kind"] for leak in report["leaks"]} == {kind}


@pytest.mark.parametrize(("kind", "cover", "run"), [("lock", "locks", LOCK), ("ipc", "sysvipc", SEGMENT)])
def test_a_list_that_cannot_be_read_for_what_lies_over_it_is_a_gap(
    kind: str, cover: str, run: str, tmp_path: Path
) -> None:
    report = guard(COVER[cover], MAY_NOT_MOUNT, kind, run, tmp_path)
    assert report["verdict"] == "unknown"
    assert "mount" in report["coverage"][kind]["reason"]


@pytest.mark.skipif(not Path("/proc/keys").exists(), reason="this kernel has no keys")
class TestKeysThatAContainerMasks:
    """Container engines mount /dev/null over /proc/keys: keys are counted then."""

    MASK = "mount --bind /dev/null /proc/keys"
    ADD = 'python3 -c "import ctypes; ctypes.CDLL(None).syscall(248, b\\"user\\", b\\"case-masked\\", b\\"x\\", 1, -4)"'

    @pytest.fixture
    def no_key(self) -> Generator[None, None, None]:
        yield
        code = "import ctypes; c = ctypes.CDLL(None).syscall; c(250, 9, c(250, 10, -4, b'user', b'case-masked', 0), -4)"
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.usefixtures("no_key")
    def test_a_new_one_is_never_clean(self, tmp_path: Path) -> None:
        report = guard(self.MASK, MAY_NOT_MOUNT, "key", self.ADD, tmp_path)
        assert report["verdict"] == "unknown"
        assert "a mount covers" in report["coverage"]["key"]["reason"]

    @pytest.mark.usefixtures("no_key")
    def test_it_is_found_by_who_may_look_past_the_mask(self, tmp_path: Path) -> None:
        report = guard(self.MASK, "", "key", self.ADD, tmp_path)
        assert "case-masked" in {leak["evidence"]["resource"]["description"] for leak in report["leaks"]}


HIDDEN = """
import ctypes, os, sys, time
call = ctypes.CDLL(None, use_errno=True).syscall
told, made = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
os.setuid(3_100_000_000 + os.getpid())
call(250, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
os.read(told, 1)
key = call(248, b"user", b"hidden", b"x", 1, -3)
call(250, 5, key, 0x3f000000)  # KEYCTL_SETPERM: only its possessors
os.write(made, b"\\n")
time.sleep(float(sys.argv[3]))
call(250, 9, key, -3)  # KEYCTL_UNLINK
sys.stdin.read()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86-64")
@pytest.mark.parametrize(("stay", "level"), [("0.1", "full"), ("60", "partial")])
def test_a_key_that_nobody_can_view_counts_only_if_it_stays(stay: str, level: str, tmp_path: Path) -> None:
    told, made, report = tmp_path / "told", tmp_path / "made", tmp_path / "report.json"
    os.mkfifo(told)
    os.mkfifo(made)
    holder = subprocess.Popen([sys.executable, "-c", HIDDEN, told, made, stay], stdin=subprocess.PIPE)
    try:
        # Its end is one second after the key's.
        guard = [
            "guard",
            "--kinds",
            "key",
            "--settle",
            "1",
            "-o",
            report,
            "--",
            "sh",
            "-c",
            f"echo > {told}; read made < {made}",
        ]
        subprocess.run([sys.executable, "-m", "leakcheck", *guard], capture_output=True, timeout=60, check=False)
    finally:
        holder.kill()
        holder.communicate()
    assert json.loads(report.read_text())["coverage"]["key"]["level"] == level
