"""The programs of benches/: the load leaves nothing, nor do many snapshots in the process that takes them."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import leakcheck

BENCHES = Path(__file__).parents[2] / "benches"


@contextlib.contextmanager
def load(processes: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    argv = [sys.executable, str(BENCHES / "load.py"), "--processes", str(processes)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == f"READY {processes} {processes * 16}\n"
        pidfds = [os.pidfd_open(child.pid) for child in psutil.Process(program.pid).children()]
        assert len(pidfds) == processes
        try:
            yield program, pidfds
        finally:
            program.kill()
            for pidfd in pidfds:
                os.close(pidfd)


def ended(pidfds: list[int]) -> bool:
    """Whether all end within ten seconds."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting = len(pidfds)
    while waiting:
        events = poll.poll(10_000)
        if not events:
            return False
        for pidfd, _ in events:
            poll.unregister(pidfd)
        waiting -= len(events)
    return True


def test_the_load_goes_when_its_standard_input_closes() -> None:
    with load(3) as (program, pidfds):
        assert program.stdin
        program.stdin.close()
        assert program.wait(30) == 0
        assert ended(pidfds)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_load_goes_however_its_program_ends(how: signal.Signals) -> None:
    with load(3) as (program, pidfds):
        program.send_signal(how)
        assert ended(pidfds)


def test_the_load_is_of_four_kinds_in_equal_parts() -> None:
    with load(2) as (program, _):
        seen = leakcheck.snapshot(scope=f"tree:{program.pid}", kinds="fd").resources("fd")
        children = [fd for fd in seen if fd["pid"] != program.pid]
    kinds = [fd["target"].split(":")[0] if fd["ino"] == 0 else "file" for fd in children]
    kinds = ["anon_inode" if kind == "pidfd" else kind for kind in kinds]
    assert {kind: kinds.count(kind) for kind in kinds} == {"file": 8, "pipe": 8, "socket": 8, "anon_inode": 8}


def test_the_load_refuses_a_number_that_could_fill_the_machine() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHES / "load.py"), "--processes", "100000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "at most 4000 processes" in done.stderr


@pytest.mark.slow  # It runs each row of the benchmark, which takes more than a minute.
def test_the_page_has_a_line_for_every_contestant(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    argv = [sys.executable, str(BENCHES / "run.py"), "--rounds", "1", "--processes", "20", "--snapshots", "100"]
    done = subprocess.run([*argv, "-o", str(page)], capture_output=True, text=True, check=False, timeout=300)
    # With 20 processes no target is meant to be met: 1 says that one was missed, and which is on standard error.
    assert done.returncode == (1 if done.stderr else 0), done.stderr
    text = page.read_text()
    for words in (
        "20 processes with 320 FDs",
        "psutil.process_iter",
        "lsof -nPw",
        "lsfd",
        "diff of two equal",
        "Guard()",
        "`leakcheck --help`",
    ):
        assert words in text
    assert list(tmp_path.iterdir()) == [page]


def test_six_hundred_snapshots_leave_no_memory_and_no_fd() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHES / "soak.py"), "600"], stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    result = json.loads(done.stdout)
    assert result["snapshots"] == 600
    assert result["fds_left"] == 0
    # A snapshot is some 30 KiB; what a busy machine itself adds is less than this. `make bench` is stricter.
    assert result["growth_kib"] <= 1024
