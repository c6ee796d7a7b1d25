"""The gate before programs: whoever starts one waits until somebody has looked, however short it runs."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from leakcheck.trials.gate import Gate, Start

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify's permission events; run as root")

STARTS = 100


def waiting(gate: Gate) -> list[Start]:
    """Return who waits, and let the others go."""
    while starts := gate.starts(20):
        others = [start for start in starts if not start.waits]
        gate.admit(others)
        for start in others:
            if start.pidfd >= 0:
                os.close(start.pidfd)
        if some := [start for start in starts if start.waits]:
            return some
    return []


def program(directory: Path, name: str, interpreter: str = "/bin/true") -> Path:
    path = directory / name
    path.write_text(f"#!{interpreter}\n")
    path.chmod(0o755)
    return path


def test_each_start_waits_however_short_the_program_runs(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    seen: list[tuple[str, bytes]] = []
    with Gate(descriptor) as gate:
        script = f"for i in $(seq {STARTS}); do {program(tmp_path, '7')}; done; {program(tmp_path, '8')}"
        runs = subprocess.Popen(["/bin/sh", "-c", script])
        while len(seen) < STARTS + 1:
            starts = waiting(gate)
            assert starts, "nobody waits any more, and not all were seen"
            for start in starts:
                # It still is what it was: nothing of the program was executed.
                seen.append((start.name, Path(f"/proc/{start.pid}/cmdline").read_bytes()))
                os.close(start.pidfd)
            gate.admit(starts)
        assert runs.wait(20) == 0
    os.close(descriptor)
    assert [name for name, _ in seen] == ["7"] * STARTS + ["8"]
    assert all(was.startswith(b"/bin/sh\0-c\0") for _, was in seen)


def test_a_gate_that_is_closed_lets_in_who_waits_and_who_comes(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    gate = Gate(descriptor)
    os.close(descriptor)
    # Popen itself returns only once the program is executed.
    with subprocess.Popen(["/bin/sh", "-c", str(program(tmp_path, "7"))]) as runs:
        (start,) = waiting(gate)
        threading.Timer(0.05, gate.close).start()
        assert runs.wait(20) == 0
    os.close(start.file)
    os.close(start.pidfd)
    assert subprocess.run([tmp_path / "7"], check=False, timeout=20).returncode == 0


def test_a_process_that_is_killed_while_it_waits_ends(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    with Gate(descriptor) as gate:
        runs = subprocess.Popen(["/bin/sh", "-c", f"exec {program(tmp_path, '7')}"])
        (start,) = waiting(gate)
        runs.kill()
        assert runs.wait(20) == -9
        gate.admit([start])
        os.close(start.pidfd)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("does", "named"),
    [
        ("ln 7 elsewhere/8; elsewhere/8", "8"),
        ("mv 7 x; ./x", "x"),
        ("mv 7 elsewhere/x; elsewhere/x", "x"),
        ("exec 5< 7; rm 7; /proc/self/fd/5", "7 (deleted)"),
    ],
)
def test_a_program_that_is_followed_waits_under_each_of_its_names(tmp_path: Path, does: str, named: str) -> None:
    made = program(tmp_path, "7")
    (tmp_path / "elsewhere").mkdir()
    directory, file = os.open(tmp_path, os.O_PATH), os.open(made, os.O_PATH)
    found = os.fstat(file)
    with Gate(directory) as gate:
        gate.follow(file)
        runs = subprocess.Popen(["/bin/sh", "-c", does], cwd=tmp_path)
        (start,) = waiting(gate)
        assert (start.inode, start.name) == ((found.st_dev, found.st_ino), named)
        gate.admit([start])
        os.close(start.pidfd)
        assert runs.wait(20) == 0
    os.close(directory)
    os.close(file)


def test_who_opens_a_program_is_told_and_does_not_wait(tmp_path: Path) -> None:
    made = program(tmp_path, "7")
    directory = os.open(tmp_path, os.O_PATH)
    with Gate(directory) as gate:
        runs = subprocess.run(["cp", made, tmp_path.parent / "copy"], check=True, timeout=20)
        assert runs.returncode == 0
        (start,) = gate.starts(20)
        assert (start.name, start.waits) == ("7", False)
        gate.admit([start])
    os.close(directory)
    if start.pidfd >= 0:
        os.close(start.pidfd)
