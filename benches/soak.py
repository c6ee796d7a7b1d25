"""Many snapshots in one process: memory must not grow, no descriptor may stay."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

WARM_UP = 100
#: Both ends are medians over this many snapshots: other processes on the machine change the size of a single snapshot.
SAMPLES = 100
#: A leak of 30 bytes a snapshot is more than this after 10,000.
NOISE_KIB = 256
KINDS = "process,fd,mount,cgroup,lock,ipc,namespace,net,loop,key,bpf"


@dataclass(frozen=True)
class Result:
    """What a soak measured."""

    snapshots: int
    growth_kib: int
    fds_left: int
    seconds: float


def rss_kib() -> int:
    """Resident memory of this process (proc_pid_statm(5), second field)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024


def open_fds() -> int:
    """Descriptors of this process, without the one that lists them."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208


def run(snapshots: int) -> Result:
    """Takes `snapshots` of the whole machine after a warm-up."""
    from leakcheck import _native

    began = time.monotonic()
    sizes: list[int] = []
    fds = open_fds()
    for taken in range(WARM_UP + snapshots):
        _native.snapshot(kinds=KINDS)
        if taken >= WARM_UP and (taken < WARM_UP + SAMPLES or taken >= WARM_UP + snapshots - SAMPLES):
            sizes.append(rss_kib())
    growth = statistics.median(sizes[-SAMPLES:]) - statistics.median(sizes[:SAMPLES])
    return Result(snapshots, round(growth), open_fds() - fds, time.monotonic() - began)


def in_own_process(snapshots: int) -> Result:
    """Like `run`, in a fresh interpreter that holds nothing else in memory."""
    argv = [sys.executable, __file__, str(snapshots)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(run(int(sys.argv[1])))))
