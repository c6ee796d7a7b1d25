"""The guards of a session hand on what watches the machine; each still sees what its own run leaves, and only that."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leakcheck import _native

pytest_plugins = ["pytester"]

KINDS = "process,fd,mount,cgroup,lock,file,ipc,namespace"


@pytest.fixture
def session() -> Iterator[_native.Remembered]:
    session = _native.Remembered()
    yield session
    session.close()


def guard(session: _native.Remembered, settle_ms: int = 100) -> _native.Guard:
    return _native.Guard(include_self=True, kinds=KINDS, settle_ms=settle_ms, remembered=session)


def leaks(run: _native.Guard) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run.end())["leaks"]
    run.abandon()
    return found


def watchers() -> set[str]:
    """The threads of this process that watch the machine."""
    names = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It ended meanwhile.
            names[task.name] = (task / "comm").read_text().strip()
    return {number for number, name in names.items() if name == "leakcheck-watch"}


def own_descriptors() -> set[str]:
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


def watches() -> set[str]:
    """What each watch has of its own: a thread and, where the connector is to be had, a socket."""
    return watchers() | {link for link in own_descriptors() if link.startswith("socket:")}


def is_kept(session: _native.Remembered) -> bool:
    """Whether the next guard has the watch of the last one."""
    before = watches()
    run = guard(session)
    # The thread of a watch that was closed before may still be seen ending in `before`, and the name of a new one come
    # after its socket.
    new = watches() - before
    run.abandon()
    return bool(before) and not new


needs_numbers = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 8),
    reason="before Linux 6.8 the numbers of mounts are given again, so each guard opens its own watch",
)


@needs_numbers
def test_guards_of_a_session_have_one_watch_which_is_closed_at_its_end() -> None:
    before = watchers()
    session = _native.Remembered()
    for _ in range(3):
        assert leaks(guard(session)) == []
    assert len(watchers() - before) == 1
    assert is_kept(session)
    session.close()
    assert "anon_inode:[fanotify]" not in own_descriptors()
    assert leaks(guard(session)) == []
    session.close()


def test_each_guard_finds_what_its_own_run_makes_by_a_thread_a_daemon_and_a_raw_call(
    session: _native.Remembered, tmp_path: Path
) -> None:
    libc = ctypes.CDLL(None)
    gate = os.pipe()

    def by_thread(path: Path) -> None:
        thread = threading.Thread(target=path.touch)
        thread.start()
        thread.join()

    def by_raw_call(path: Path) -> None:
        assert libc.syscall(258, -100, os.fsencode(path), 0o700) == 0  # mkdirat

    def by_daemon(path: Path) -> None:
        # Its grandchild ends when this process closes the pipe.
        script = f"touch '{path}'; exec cat >/dev/null"
        subprocess.run(["setsid", "-f", "sh", "-c", script], check=True, stdin=gate[0])
        while not path.exists():
            os.sched_yield()

    try:
        for number, make in enumerate((by_thread, by_raw_call, by_daemon)):
            assert leaks(guard(session)) == []
            run, path = guard(session), tmp_path / str(number)
            make(path)
            found = leaks(run)
            assert str(path) in {leak["evidence"]["resource"].get("path") for leak in found}, found
            assert {leak["attribution"] for leak in found} != {"none"}, found
            assert ("process" in {leak["kind"] for leak in found}) == (make is by_daemon), found
            # The daemon lives on, and is not the next run's.
            assert leaks(guard(session)) == []
    finally:
        os.close(gate[1])
        os.close(gate[0])


def test_what_an_earlier_run_s_process_makes_later_is_not_this_run_s(
    session: _native.Remembered, tmp_path: Path
) -> None:
    first = guard(session)
    child = subprocess.Popen(["sh", "-c", 'read line; touch "$0"', tmp_path / "late"], stdin=subprocess.PIPE)
    assert leaks(first)
    second = guard(session)
    child.communicate(b"\n")
    assert [leak for leak in leaks(second) if leak["attribution"] != "none"] == []
    assert (tmp_path / "late").exists()


@needs_numbers
def test_after_a_mount_the_next_guard_opens_its_own_watch() -> None:
    # In a mount namespace of its own.
    code = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_kept_watch import *
from leakcheck import _native
session = _native.Remembered()
assert leaks(guard(session)) == []
assert is_kept(session)
os.mkdir("/tmp/mounted")
subprocess.run(["mount", "-t", "tmpfs", "none", "/tmp/mounted"], check=True)
assert not is_kept(session)
assert is_kept(session)
run = guard(session)
os.mkdir("/tmp/mounted/made")
found = leaks(run)
assert [leak["attribution"] for leak in found] == ["creator"], found
"""
    inside = 'mount -t tmpfs none /tmp && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", sys.executable, "-c", code]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    assert done.returncode == 0, done.stdout


@needs_numbers
def test_a_mount_that_comes_while_the_first_guard_begins_is_watched_by_the_next_one() -> None:
    # At every millisecond of the time that it takes to begin.
    code = f"""
import ctypes, os, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_kept_watch import *
from leakcheck import _native
libc = ctypes.CDLL(None)
os.mkdir("/tmp/mounted")
def mount(delay):
    time.sleep(delay)
    assert libc.mount(b"none", b"/tmp/mounted", b"tmpfs", 0, None) == 0
for delay in range(12):
    session = _native.Remembered()
    other = threading.Thread(target=mount, args=[delay / 1000])
    other.start()
    first = guard(session)
    other.join()
    leaks(first)
    run = guard(session)
    os.mkdir("/tmp/mounted/made")
    found = leaks(run)
    assert [leak["attribution"] for leak in found] == ["creator"], (delay, found)
    session.close()
    assert libc.umount(b"/tmp/mounted") == 0
"""
    inside = 'mount -t tmpfs none /tmp && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", sys.executable, "-c", code]
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_program_that_closes_all_descriptors_is_guarded_on_and_keeps_what_has_their_numbers() -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_kept_watch import *
from leakcheck import _native
session = _native.Remembered()
assert leaks(guard(session)) == []
os.closerange(3, 4096)
own = [os.open("/dev/null", os.O_RDONLY) for _ in range(12)]
assert leaks(guard(session)) == []
run = guard(session)
own.append(os.open("/etc/passwd", os.O_RDONLY))
(found,) = leaks(run)
assert found["kind"] == "fd", found
session.close()
assert [os.readlink(f"/proc/self/fd/{{number}}") for number in own[:12]] == ["/dev/null"] * 12
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def run_alone(code: str) -> None:
    """Run it in an interpreter of its own, whose descriptors it may close."""
    start = f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_kept_watch import *\n"
    start += "from leakcheck import _native\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_descriptors_that_get_the_numbers_of_leakchecks_within_a_guard_are_leaks_and_are_not_read() -> None:
    run_alone(
        """
run = guard(_native.Remembered())
os.closerange(3, 4096)
kept = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(6)]
pipes = [os.pipe() for _ in range(6)]
for _, end in pipes:
    os.write(end, b"data of the test")
# What others make meanwhile nobody can tell from it.
found = [leak for leak in leaks(run) if leak["evidence"]["resource"].get("pid") == os.getpid()]
assert len(found) == 18, found
assert {os.lseek(number, 0, os.SEEK_CUR) for number in kept} == {0}
assert {os.read(end, 64) for end, _ in pipes} == {b"data of the test"}
"""
    )


def test_who_made_a_file_is_unknown_once_the_program_closed_the_descriptors_that_tell() -> None:
    run_alone(
        """
import tempfile
for close in (False, True):
    run = _native.Guard(include_self=True, kinds=KINDS, settle_ms=50, attributed_only=True)
    if close:
        os.closerange(3, 4096)
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        subprocess.run(["touch", f"{place}/left"], stdin=subprocess.DEVNULL, check=True)
        report = json.loads(run.end())
    # An ordinary user hears of no maker: there it is unattributed in either case.
    root = os.geteuid() == 0
    assert report["verdict"] == ("unknown" if close else "leaked" if root else "clean"), report
    run.abandon()
"""
    )


def test_an_inotify_instance_with_the_number_of_leakchecks_hides_no_file() -> None:
    run_alone(
        """
import tempfile
libc = ctypes.CDLL(None)
with tempfile.TemporaryDirectory(dir="/tmp") as place:
    session = _native.Remembered()
    assert leaks(guard(session)) == []
    run = guard(session)
    links = {one: os.readlink(one) for one in Path("/proc/self/fd").iterdir() if os.path.lexists(one)}
    (own,) = [int(one.name) for one, link in links.items() if link == "anon_inode:inotify"]
    os.close(own)
    mine = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    os.dup2(mine, own)
    Path(place, "left").touch()
    assert "file" in {leak["kind"] for leak in leaks(run)}
"""
    )


def test_a_forked_child_opens_its_own_and_leaves_the_parent_s_alone(session: _native.Remembered) -> None:
    assert leaks(guard(session)) == []
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run = guard(session)
            made = os.pipe()
            code = 0 if len(leaks(run)) == len(made) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run = guard(session)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0)
    try:
        assert {leak["kind"] for leak in leaks(run)} == {"process", "fd"}
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_a_guard_within_a_guard_leaves_nothing_that_the_outer_one_sees(session: _native.Remembered) -> None:
    assert leaks(guard(session)) == []
    outer = guard(session)
    assert leaks(guard(session)) == []
    assert leaks(guard(session)) == []
    assert leaks(outer) == []
