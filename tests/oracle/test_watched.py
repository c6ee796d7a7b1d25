"""A look that is told by inotify which directories changed sees what a fresh look sees, whatever becomes of the queue.

What happens to the directories themselves is in `test_remembered`.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leakcheck import _native

QUEUED = 16_384
"""Events that a queue holds: /proc/sys/fs/inotify/max_queued_events by default."""
LIMITED = """
import os, sys
from pathlib import Path
from leakcheck import _native
Path("/proc/sys/user/max_inotify_watches").write_text("3")
root, remembered = Path(sys.argv[1]), _native.Remembered()
def look(how):
    files = _native.snapshot(scope=f"tree:{os.getpid()}", kinds="file", roots=[str(root)], remembered=how)
    return [file["path"] for file in files.resources("file")]
for number in range(8):
    look(remembered)
    infos = [path.read_text() for path in Path("/proc/self/fdinfo").iterdir() if path.exists()]
    assert max(info.count("inotify wd:") for info in infos) == 3
    (root / str(number) / "new").touch()
    assert look(remembered) == look(None)
"""


def looked(root: Path, remembered: _native.Remembered | None) -> list[str]:
    """Return the paths below a directory."""
    snapshot = _native.snapshot(scope=f"tree:{os.getpid()}", kinds="file", roots=[str(root)], remembered=remembered)
    return [str(file["path"]) for file in snapshot.resources("file")]


def queues() -> set[int]:
    """Return the descriptors of this process that are inotify queues."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        # The descriptor that the list is read from is gone by now.
        with contextlib.suppress(FileNotFoundError):
            if str(entry.readlink()) == "anon_inode:inotify":
                found.add(int(entry.name))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in map(str, range(8)):
        (tmp_path / name / "below").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def remembered(root: Path) -> Iterator[_native.Remembered]:
    remembered = _native.Remembered()
    looked(root, remembered)
    yield remembered


@pytest.fixture
def queue(root: Path) -> Iterator[tuple[_native.Remembered, int]]:
    before, remembered = queues(), _native.Remembered()
    looked(root, remembered)
    (number,) = queues() - before
    yield remembered, number


def test_more_events_than_the_queue_holds(root: Path, remembered: _native.Remembered) -> None:
    for _ in range(QUEUED // 2):
        for name in ("0/one", "1/other"):
            os.mknod(root / name)
            (root / name).unlink()
    # Events of these two were dropped.
    (root / "2/below/new").touch()
    (root / "3/below").rmdir()
    assert looked(root, remembered) == looked(root, None)
    (root / "2/below/newer").touch()
    assert looked(root, remembered) == looked(root, None)


def test_a_forked_child_takes_none_of_its_parents_events(root: Path, remembered: _native.Remembered) -> None:
    (root / "0/below/new").touch()
    child = os.fork()
    if child == 0:
        os._exit(looked(root, remembered) != looked(root, None))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert looked(root, remembered) == looked(root, None)


def other_file(number: int) -> None:
    other = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(other, number, inheritable=False)
    os.close(other)


@pytest.mark.parametrize("close", [os.close, other_file])
def test_a_program_that_closes_all_descriptors(
    close: Callable[[int], None], root: Path, queue: tuple[_native.Remembered, int]
) -> None:
    remembered, number = queue
    close(number)
    (root / "0/below/new").touch()
    assert looked(root, remembered) == looked(root, None)
    (root / "0/below/newer").touch()
    assert looked(root, remembered) == looked(root, None)
    del remembered
    if close is other_file:
        assert str(Path(f"/proc/self/fd/{number}").readlink()) == "/dev/null"
        os.close(number)


def test_the_queue_is_no_descriptor_of_the_program(root: Path) -> None:
    # Other tests' queues are not this one's.
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    run = _native.Guard(kinds="fd", include_self=True, settle_ms=0)
    remembered = _native.Remembered()
    looked(root, remembered)
    shown = _native.snapshot(kinds="fd,file", roots=[str(root)], include_self=True, remembered=remembered)
    run.abandon()
    own = [fd for fd in shown.resources("fd") if fd["pid"] == os.getpid() and str(fd["fd"]) not in before]
    assert not [fd for fd in own if "inotify" in fd["target"]]


def test_fewer_watches_than_directories(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to limit the watches of a user namespace")
    if subprocess.run(["unshare", "--user", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no user namespace can be made here: in a chroot the kernel refuses it")
    command = ["unshare", "--user", "--map-root-user", "--mount-proc", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*command, sys.executable, "-c", LIMITED, str(root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_directory_that_is_moved_out_of_sight_and_back(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    remembered, away = _native.Remembered(), tmp_path_factory.mktemp("away") / "away"
    looked(root, remembered)
    (root / "0").rename(away)
    assert looked(root, remembered) == looked(root, None)
    (away / "below/new").touch()
    away.rename(root / "0")
    assert looked(root, remembered) == looked(root, None)
    (root / "0/below/newer").touch()
    assert looked(root, remembered) == looked(root, None)


def test_other_roots(root: Path) -> None:
    """A root that is below another one, or no longer is one, shows each file once."""
    remembered = _native.Remembered()
    for roots in (["."], [".", "0"], ["0", "."], ["0"], [".", "1"], ["."]):
        for name in ("0/below/new", "1/below/new"):
            path = root / name
            path.unlink() if path.exists() else path.touch()
            places = [str((root / one).resolve()) for one in roots]
            both = [
                [
                    str(file["path"])
                    for file in _native.snapshot(
                        scope=f"tree:{os.getpid()}", kinds="file", roots=places, remembered=how
                    ).resources("file")
                ]
                for how in (remembered, None)
            ]
            assert both[0] == both[1], roots
