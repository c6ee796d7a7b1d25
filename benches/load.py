"""Many processes with FDs of mixed kinds, for as long as standard input stays open.

Prints ``READY PROCESSES FDS`` once all of them are ready. They die with this program however it ends: each has a
parent-death signal, and they create nothing with a name that would outlive them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import prctl

LIBC = ctypes.CDLL(None, use_errno=True)
MOST_PROCESSES, MOST_SETS = 4000, 16
READY_WITHIN = 60.0


def timerfd() -> int:
    """Opens a timer; Python has os.timerfd_create only from 3.13 on."""
    fd = LIBC.timerfd_create(time.CLOCK_MONOTONIC, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return int(fd)


def open_mixed(sets: int) -> list[object]:
    """Opens `sets` times 16 FDs: four each of files, pipe ends, sockets and anonymous inodes."""
    kept: list[object] = []
    for _ in range(sets):
        kept += [tempfile.TemporaryFile(), os.open("/usr/lib", os.O_PATH), os.open("/dev/null", os.O_RDWR)]  # noqa: SIM115
        kept += [os.open(sys.executable, os.O_RDONLY), os.pipe(), os.pipe(), socket.socketpair()]
        kept += [socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
        kept += [os.eventfd(0), select.epoll(), os.pidfd_open(os.getpid()), timerfd()]
    return kept


def child(ready: int, parent: int, sets: int, cgroup: str | None) -> None:
    """Opens the FDs, reports that, and waits for the end."""
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        return
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
    os.closerange(0, ready)
    os.closerange(ready + 1, 4096)
    kept = open_mixed(sets)
    os.write(ready, b"r")
    os.close(ready)
    while kept:
        signal.pause()


def start(processes: int, sets: int, cgroup: str | None, pids: list[int]) -> None:
    """Forks the children into `pids` and waits until each has its FDs."""
    gc.freeze()  # A collection in a child would copy every page of it.
    reader, writer = os.pipe()
    parent = os.getpid()
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                child(writer, parent, sets, cgroup)
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(writer)
    ready = 0
    while True:
        if not select.select([reader], [], [], READY_WITHIN)[0]:
            raise TimeoutError(f"{ready} of {processes} processes are ready after {READY_WITHIN:.0f} s")
        said = os.read(reader, 4096)
        if not said:
            break  # Each has closed its end, so that its FDs are those of the sets.
        ready += len(said)
    os.close(reader)
    if ready < processes:
        raise RuntimeError(f"{processes - ready} of {processes} processes could not open their FDs")


def stop(pids: list[int]) -> None:
    """Ends and reaps the children: they are ours and not reaped yet, so their pids are theirs."""
    for pid in pids:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    for pid in pids:
        os.waitpid(pid, 0)


def main() -> int:
    """Builds the load, holds it, takes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1000, help=f"how many, at most {MOST_PROCESSES}")
    parser.add_argument("--sets", type=int, default=1, help=f"how many sets of 16 FDs each opens, at most {MOST_SETS}")
    parser.add_argument("--cgroup", metavar="DIR", help="a directory of a cgroup hierarchy that the processes enter")
    options = parser.parse_args()
    if not (0 < options.processes <= MOST_PROCESSES and 0 < options.sets <= MOST_SETS):
        parser.error(f"at most {MOST_PROCESSES} processes with {MOST_SETS} sets each, and at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pids: list[int] = []
    try:
        start(options.processes, options.sets, options.cgroup, pids)
        fds = len(os.listdir(f"/proc/{pids[0]}/fd")) * len(pids)  # noqa: PTH208
        print("READY", len(pids), fds, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while os.read(0, 4096):
                pass
    finally:
        stop(pids)
    return 0


if __name__ == "__main__":
    sys.exit(main())
