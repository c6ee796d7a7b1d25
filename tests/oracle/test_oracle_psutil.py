"""psutil and readlink as an independent oracle: the same processes with the same FDs, on a subtree that is quiet."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import leakcheck

STATES = {"S": psutil.STATUS_SLEEPING, "Z": psutil.STATUS_ZOMBIE, "T": psutil.STATUS_STOPPED}

#: Grandchildren: one that sleeps with FDs of every kind, one zombie, one that has stopped itself.
FAMILY = """
import os, select, signal, socket, sys, tempfile, threading
os.chdir(sys.argv[1])
ready, done = os.pipe()
pids = []
def spawn(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    pids.append(pid)
def sleeper():
    kept = [open("a file\\nwith a line (deleted)", "w"), tempfile.TemporaryFile()]
    kept += [os.open(".", os.O_PATH), open("/dev/null")]
    kept += [os.pipe(), socket.socketpair(), socket.socket(), os.eventfd(7), select.epoll(), os.memfd_create("m")]
    os.mkfifo("fifo")
    kept += [os.open("fifo", os.O_RDWR), os.dup2(kept[0].fileno(), 200), os.pidfd_open(os.getpid())]
    os.write(done, b"s")
    signal.pause()
spawn(sleeper)
os.read(ready, 1)
spawn(lambda: None)
os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
spawn(lambda: os.kill(os.getpid(), signal.SIGSTOP))
os.waitid(os.P_PID, pids[2], os.WSTOPPED | os.WNOWAIT)
print("READY", flush=True)
sys.stdin.read()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
"""


@contextlib.contextmanager
def family(folder: os.PathLike[str]) -> Iterator[psutil.Process]:
    argv = [sys.executable, "-c", FAMILY, os.fspath(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "READY\n"
        parent = psutil.Process(program.pid)
        quiet(parent)
        yield parent
        program.communicate(timeout=30)
    assert program.returncode == 0


@pytest.fixture
def parent(tmp_path: os.PathLike[str]) -> Iterator[psutil.Process]:
    with family(tmp_path) as process:
        yield process


def quiet(parent: psutil.Process) -> None:
    """Returns when none of the family runs: after READY the parent has yet to reach its read, which nothing tells."""
    deadline = time.monotonic() + 30
    while any(p.status() == psutil.STATUS_RUNNING for p in [parent, *parent.children(recursive=True)]):
        assert time.monotonic() < deadline
        os.sched_yield()


def links(pid: int) -> dict[int, bytes]:
    if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
        # It has none, and an ordinary user cannot read that.
        return {}
    return {int(link.name): bytes(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}


def unescape(text: str) -> bytes:
    """The bytes that leakcheck's escaped form stands for; the names here hold newlines and no backslash."""
    return text.replace("\\n", "\n").encode()


def test_processes_have_the_pid_start_state_and_parent_that_psutil_reads(parent: psutil.Process) -> None:
    seen = leakcheck.snapshot(scope=f"tree:{parent.pid}", kinds="process").resources("process")
    ticks = os.sysconf("SC_CLK_TCK")
    native = {(p["pid"], p["start"], STATES[p["state"]], p["ppid"], p["comm"]) for p in seen}
    peer = set()
    for process in [parent, *parent.children(recursive=True)]:
        start = round((process.create_time() - psutil.boot_time()) * ticks)
        peer.add((process.pid, start, process.status(), process.ppid(), process.name()))
    assert native == peer
    assert {state for _, _, state, _, _ in native} == set(STATES.values())


def test_every_fd_has_the_target_that_readlink_reads(parent: psutil.Process) -> None:
    seen = leakcheck.snapshot(scope=f"tree:{parent.pid}", kinds="process,fd")
    assert seen.coverage["fd"] == ("full", "")
    native = {(fd["pid"], fd["fd"]): unescape(fd["target"]) for fd in seen.resources("fd")}
    family_pids = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
    peer = {(pid, number): target for pid in family_pids for number, target in links(pid).items()}
    assert native == peer
    # Stdio, the ready pipe, and 15 of its own: nothing that the oracle could miss together with us.
    sleeper = min(pid for pid in family_pids if pid != parent.pid)
    assert len([1 for pid, _ in native if pid == sleeper]) == 3 + 2 + 15


def test_a_path_has_the_device_and_inode_that_stat_reads(parent: psutil.Process) -> None:
    seen = leakcheck.snapshot(scope=f"tree:{parent.pid}", kinds="fd").resources("fd")
    files = [fd for fd in seen if fd["target"].startswith("/")]
    assert len(files) > 6
    for fd in files:
        stat = Path(f"/proc/{fd['pid']}/fd/{fd['fd']}").stat()
        device = os.major(stat.st_dev) << 32 | os.minor(stat.st_dev)
        assert (fd["dev"], fd["ino"]) == (device, stat.st_ino), fd


def test_regular_files_and_sockets_are_those_that_psutil_lists(parent: psutil.Process) -> None:
    seen = leakcheck.snapshot(scope=f"tree:{parent.pid}", kinds="fd").resources("fd")
    for process in [parent, *parent.children(recursive=True)]:
        if process.status() == psutil.STATUS_ZOMBIE:
            continue
        native = {fd["fd"]: fd["target"] for fd in seen if fd["pid"] == process.pid}
        for file in process.open_files():
            assert unescape(native[file.fd]).decode() == file.path
        sockets = {number for number, target in native.items() if target.startswith("socket:")}
        # psutil lists a socket that is bound or connected; an idle TCP socket is in no table of /proc/net.
        assert {c.fd for c in process.net_connections("all")} <= sockets


def test_after_the_end_nothing_of_the_subtree_is_seen(tmp_path: os.PathLike[str]) -> None:
    with family(tmp_path) as parent:
        pids = {parent.pid, *(child.pid for child in parent.children(recursive=True))}
        assert pids <= {p["pid"] for p in leakcheck.snapshot(kinds="process").resources("process")}
    assert not pids & {p["pid"] for p in leakcheck.snapshot(kinds="process").resources("process")}
