"""The noise program is itself well-behaved."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

NOISE = Path(__file__).with_name("noise.py")


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        root.mkdir()
    return roots


@contextlib.contextmanager
def noise(roots: list[Path], *options: str):
    argv = [sys.executable, NOISE, *options, *roots]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "READY\n"
        yield program
        program.wait(timeout=60)


def test_it_makes_files_and_takes_them_away_at_the_end_of_its_input(roots: list[Path]) -> None:
    with noise(roots) as program:
        assert all(any(root.iterdir()) for root in roots)
        program.stdin.close()
    assert program.returncode == 0
    assert [list(root.iterdir()) for root in roots] == [[], []]


def test_sigterm_ends_it_as_cleanly(roots: list[Path]) -> None:
    with noise(roots) as program:
        program.send_signal(signal.SIGTERM)
    assert program.returncode == 128 + signal.SIGTERM
    assert [list(root.iterdir()) for root in roots] == [[], []]


def test_it_ends_by_itself_when_its_time_is_over(roots: list[Path]) -> None:
    with noise(roots, "--seconds", "3") as program:
        assert program.wait(timeout=60) == 0
    assert [list(root.iterdir()) for root in roots] == [[], []]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_its_mounts_are_in_no_other_namespace(roots: list[Path]) -> None:
    with noise(roots) as program:
        ours, its = (Path(f"/proc/{pid}/ns/mnt").readlink() for pid in ("self", program.pid))
        assert ours != its
        program.stdin.close()
