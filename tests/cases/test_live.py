"""Processes that the oracle does not see: that never hold still, that hide, that look dead."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cases.conftest import INPUTS, Outcome

Case = Callable[..., Outcome]
Compiled = Callable[[str], Path]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def cage() -> Iterator[list[str]]:
    """Give the words before a command whose descendants all end with the test, however they flee (cgroups(7))."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not places or not (places[0] / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    cgroup = places[0] / own[4:] / f"leakcheck-cage-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"make a cgroup: {error}")
    try:
        yield ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh"]
    finally:
        (cgroup / "cgroup.kill").write_text("1")
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            time.sleep(0.01)
        cgroup.rmdir()


def guard(directory: Path, *argv: str | Path, before: Sequence[str] = ()) -> dict[str, object]:
    """Run ``leakcheck guard`` with `argv` and return its report."""
    report = directory / "report.json"
    command = [*before, sys.executable, "-m", "leakcheck", "guard", "--json", "-o", str(report), *map(str, argv)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    found: dict[str, object] = json.loads(report.read_text())
    return found


def told(report: dict[str, object]) -> set[tuple[str, str]]:
    """Return kind and class of each leak."""
    leaks = report["leaks"]
    assert isinstance(leaks, list)
    return {(leak["kind"], leak["class"]) for leak in leaks}


PACES = pytest.mark.parametrize("pace", ["100000", "20000", "0"], ids=lambda pace: f"{pace} us")


class TestRespawning:
    """A run that lives on in ever new processes is leaked, and clean never."""

    @root_only
    @PACES
    def test_a_chain_of_processes_is_leaked_on_the_host(
        self, compiled: Compiled, cage: list[str], tmp_path: Path, pace: str
    ) -> None:
        report = guard(tmp_path, "--settle", "0.1", "--", compiled("chain.c"), "30", pace, before=cage)
        assert report["verdict"] == "leaked"
        assert ("process", "respawning") in told(report)

    @root_only
    @PACES
    def test_a_chain_of_processes_is_leaked_in_an_arena(self, compiled: Compiled, tmp_path: Path, pace: str) -> None:
        chain = compiled("chain.c")
        bind = ["--bind", f"{chain.parent}:/mnt:ro"]
        report = guard(tmp_path, "--arena", "--settle", "0.1", *bind, "--", "/mnt/chain", "30", pace)
        assert told(report) == {("process", "respawning")}

    @root_only
    def test_a_process_that_flees_from_being_read_is_leaked_in_an_arena(
        self, compiled: Compiled, tmp_path: Path
    ) -> None:
        shy = compiled("shy.c")
        report = guard(
            tmp_path, "--arena", "--settle", "0.1", "--bind", f"{shy.parent}:/mnt:ro", "--", "/mnt/shy", "30"
        )
        assert told(report) == {("process", "respawning")}

    @root_only
    def test_a_shell_that_starts_itself_anew_every_ten_milliseconds_is_leaked(
        self, cage: list[str], tmp_path: Path
    ) -> None:
        report = guard(tmp_path, "--settle", "0.1", "--", "sh", INPUTS / "comet.sh", "0", before=cage)
        assert ("process", "respawning") in told(report)

    @root_only
    def test_a_chain_in_a_nested_pid_namespace_is_leaked(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        nested = f"unshare -pf sh -c '{compiled('chain.c')} 30 3000; sleep 30' </dev/null >/dev/null 2>&1 & sleep 0.3"
        report = guard(tmp_path, "--settle", "0.1", "--", "sh", "-c", nested, before=cage)
        assert report["verdict"] == "leaked"
        assert any(kind == "process" for kind, _ in told(report))

    def test_children_that_this_process_starts_and_waits_for_are_nobodys_chain(self) -> None:
        code = (
            "import leakcheck, subprocess, threading\n"
            "over = threading.Event()\n"
            "def work():\n"
            "    while not over.is_set(): subprocess.run(['true'])\n"
            "thread = threading.Thread(target=work)\n"
            "thread.start()\n"
            "try:\n"
            "    with leakcheck.guard(kinds='process', settle=0.2, on_unknown='ignore'): pass\n"
            "finally: over.set(); thread.join()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert "respawning" not in done.stderr, done.stderr
