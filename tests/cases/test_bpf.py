"""BPF objects on a host: those of others are no leak of the run, and the run's are, wherever they are kept."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cases.conftest import INPUTS

MAPS = INPUTS / "bpf_maps.py"
# Others may make maps meanwhile, and those of a run that makes some itself are not told from theirs.
ENTRIES = str(1000 + os.getpid())
ENV = {**os.environ, "ENTRIES": ENTRIES}
# If another process of this machine makes a map at the same instant, the maker is one of the two.
TOLD = [["creator"], ["none"]]


def recorded() -> bool:
    """Whether the calls of this machine's processes can be recorded: in the first namespaces, as root, on x86-64."""
    first = [Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("cgroup", "pid")] == [0xEFFFFFFB, 0xEFFFFFFC]
    return first and os.geteuid() == 0 and os.uname().machine == "x86_64"


pytestmark = pytest.mark.skipif(not recorded(), reason="no calls of BPF can be made or recorded here")


@pytest.fixture
def neighbour(tmp_path: Path) -> Generator[str, None, None]:
    """Yield the socket of somebody who makes and takes maps."""
    (tmp_path / "its").mkdir()
    path = str(tmp_path / "its/socket")
    argv = [sys.executable, MAPS, "neighbour", path]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield path
        process.kill()


def leaks(*argv: str, settle: str = "0.1") -> list[str]:
    guard = [sys.executable, "-m", "leakcheck", "guard", "--json", "--kinds", "bpf", "--settle", settle, "--"]
    command = [*guard, sys.executable, MAPS, *argv]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, env=ENV)
    report = json.loads(done.stdout)
    assert report["command"]["exit"] == 0, done.stderr
    ours = [leak for leak in report["leaks"] if f" {ENTRIES} entries" in json.dumps(leak)]
    assert done.returncode == (1 if report["leaks"] else 0), report
    return [leak["attribution"] for leak in ours]


@pytest.mark.parametrize("word", ["pin", "make"])
def test_what_a_neighbour_makes_is_no_leak_whoever_holds_it(neighbour: str, word: str) -> None:
    assert leaks("ask", neighbour, word) == []
    assert leaks("ask", neighbour, word, settle="0") == []


def test_what_a_run_hands_to_a_neighbour_is_a_leak(neighbour: str) -> None:
    assert leaks("ask", neighbour, "take") in TOLD
    # Which of the two is its own, nothing tells: they were made at the same time.
    assert leaks("ask", neighbour, "both") in [*TOLD, ["none", "none"]]


def test_whose_a_map_is_that_a_neighbour_holds_is_told_by_the_order_of_their_numbers(neighbour: str) -> None:
    # He holds one, and made one, in both.
    assert leaks("ask", neighbour, "instead") in TOLD
    assert leaks("ask", neighbour, "back") == []
    # Nobody holds it but a file system, and the run has made one too.
    assert leaks("ask", neighbour, "too", "pin") == []


def test_what_a_run_pins_is_a_leak(tmp_path: Path) -> None:
    try:
        assert leaks("pin", str(tmp_path)) in TOLD
    finally:
        subprocess.run(["umount", tmp_path], check=True)
