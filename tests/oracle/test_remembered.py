"""A look that remembers earlier ones sees what a fresh look sees, whatever happened between."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leakcheck import _native

NAMES = ("a", "b", "c")
REALTIME_COARSE = 5
OWN = f"tree:{os.getpid()}"
MOUNTS = {
    "overlay": "mkdir $DIR/lower $DIR/rest && mount -t tmpfs none $DIR/rest && mkdir $DIR/rest/upper $DIR/rest/work && "
    "mount -t overlay -o lowerdir=$DIR/lower,upperdir=$DIR/rest/upper,workdir=$DIR/rest/work none $DIR/place",
    "ext4 without fractions of seconds": "truncate -s 8M $DIR/image && mkfs.ext4 -q -I 128 $DIR/image && "
    "mount -o loop $DIR/image $DIR/place",
}
MOUNTING = """
import subprocess, sys
from leakcheck import _native
root = sys.argv[1]
remembered = _native.Remembered()
def look(how):
    files = _native.snapshot(kinds="file", roots=[root], remembered=how).resources("file")
    return [(file["dev"], file["ino"], file["birth"], file["path"]) for file in files]
def agree():
    assert look(remembered) == look(None)
    return look(None)
first = agree()
for mount, target in [
    (["-t", "tmpfs", "none"], "/directory"),
    (["--bind", "/etc/passwd"], "/directory/file"),
    (["--bind", "/etc"], "/directory"),
]:
    subprocess.run(["mount", *mount, root + target], check=True)
    assert agree() != first
    subprocess.run(["umount", root + target], check=True)
    assert agree() == first
"""
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


def seen(root: Path, remembered: _native.Remembered | None) -> list[tuple[object, ...]]:
    """Identity, path and type of each file; the coverage too."""
    snapshot = _native.snapshot(scope=OWN, kinds="file", roots=[str(root)], remembered=remembered)
    fields = ("dev", "ino", "birth", "link", "path", "class")
    return [tuple(file[field] for field in fields) for file in snapshot.resources("file")]


class Directories(RuleBasedStateMachine):
    """Random changes below a directory, each followed by a look, some of them within one clock tick."""

    place = os.environ.get("LEAKCHECK_TEST_PLACE", "/var/tmp")

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="leakcheck-remembered-", dir=self.place))
        self.remembered = _native.Remembered()
        for name in NAMES:
            (self.root / name).mkdir()
        # A directory is remembered when it is older than a clock tick.
        self.age()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def age(self) -> None:
        """Look when everything here is older than two clock ticks: only then is a listing kept."""
        changed = max(Path(directory).stat().st_ctime_ns for directory, _, _ in os.walk(self.root))
        wait_until(changed + 25_000_000)
        seen(self.root, self.remembered)

    def attempt(self, change: Callable[[], object]) -> None:
        with contextlib.suppress(OSError, shutil.Error):
            change()

    @rule()
    def time_passes(self) -> None:
        self.age()

    @rule(path=PATHS)
    def create(self, path: str) -> None:
        self.attempt(lambda: (self.root / path).write_text(path))

    @rule(path=PATHS)
    def replace_in_one_tick(self, path: str) -> None:
        self.attempt(lambda: ((self.root / path).unlink(), (self.root / path).write_text("new")))

    @rule(path=PATHS)
    def make_directories(self, path: str) -> None:
        self.attempt(lambda: (self.root / path / "deep").mkdir(parents=True))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.attempt((self.root / path).unlink)

    @rule(path=PATHS)
    def remove_directory(self, path: str) -> None:
        self.attempt((self.root / path).rmdir)

    @rule(path=PATHS)
    def remove_tree(self, path: str) -> None:
        self.attempt(lambda: shutil.rmtree(self.root / path))

    @rule(source=PATHS, to=PATHS)
    def rename(self, source: str, to: str) -> None:
        self.attempt(lambda: (self.root / source).rename(self.root / to))

    @rule(one=PATHS, other=PATHS)
    def exchange(self, one: str, other: str) -> None:
        _exchange(self.root / one, self.root / other)

    @rule(source=PATHS, to=PATHS)
    def link(self, source: str, to: str) -> None:
        self.attempt(lambda: (self.root / to).hardlink_to(self.root / source))

    @rule(path=PATHS)
    def symlink(self, path: str) -> None:
        self.attempt(lambda: (self.root / path).symlink_to("nowhere"))

    @rule(path=PATHS)
    def change_in_place(self, path: str) -> None:
        self.attempt(lambda: (self.root / path).chmod(0o700))

    @rule(path=PATHS, seconds=st.sampled_from([0, 1, 10**9]))
    def set_times_back(self, path: str, seconds: int) -> None:
        self.attempt(lambda: os.utime(self.root / path, (seconds, seconds)))

    @rule(path=PATHS)
    def create_and_keep_the_directorys_times(self, path: str) -> None:
        def change() -> None:
            directory = (self.root / path).parent
            before = directory.stat()
            (self.root / path).write_text("hidden")
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))

        self.attempt(change)

    @invariant()
    def the_looks_agree(self) -> None:
        if hasattr(self, "root"):
            assert seen(self.root, self.remembered) == seen(self.root, None)


def wait_until(ns: int) -> None:
    """Wait until the clock of file systems shows more than this."""
    while (left := ns - time.clock_gettime_ns(REALTIME_COARSE)) >= 0:
        time.sleep(left / 1e9 + 0.001)


def _exchange(one: Path, other: Path) -> None:
    at, exchange = -100, 2
    ctypes.CDLL(None).renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange)


class InMemory(Directories):
    """The same on a tmpfs."""

    place = "/dev/shm"


TestOnDisk, TestInMemory = Directories.TestCase, InMemory.TestCase
TestOnDisk.settings = TestInMemory.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("mount", MOUNTS.values(), ids=MOUNTS)
def test_on_other_file_systems_too(mount: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "TestOnDisk"]
    done = in_own_mounts(f'{mount} && exec "$@"', tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_mounted_over_a_name_or_unmounted_again_is_seen(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/file").touch()
    done = in_own_mounts('exec "$@"', tmp_path, sys.executable, "-c", MOUNTING, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_file_is_described_as_it_is_at_the_end_of_the_run(tmp_path: Path) -> None:
    run = _native.Guard(kinds="file", roots=[str(tmp_path)], settle_ms=300)
    grown = tmp_path / "grown"
    grown.touch()
    thread = threading.Thread(target=grow, args=(grown,))
    thread.start()
    report = json.loads(run.end())
    thread.join()
    (leak,) = report["leaks"]
    assert leak["evidence"]["resource"]["size"] == grown.stat().st_size > 0


def grow(file: Path) -> None:
    """Let it grow when its directory is old enough to be remembered."""
    wait_until(file.parent.stat().st_ctime_ns + 100_000_000)
    file.write_text("grown")


def in_own_mounts(script: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, with `directory` in $DIR."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *arguments]
    place = {"DIR": str(directory), "LEAKCHECK_TEST_PLACE": str(directory / "place")}
    (directory / "place").mkdir()
    return subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=300, check=False)
