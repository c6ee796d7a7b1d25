"""The gate before programs: whoever starts one waits until somebody has looked, however short it runs."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from leakcheck.trials.gate import Gate, Start

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify's permission events; run as root")

STARTS = 100


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
            starts: list[Start] = gate.starts(20)
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
        (start,) = gate.starts(20)
        threading.Timer(0.05, gate.close).start()
        assert runs.wait(20) == 0
    os.close(start.file)
    os.close(start.pidfd)
    assert subprocess.run([tmp_path / "7"], check=False, timeout=20).returncode == 0


def test_a_process_that_is_killed_while_it_waits_ends(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    with Gate(descriptor) as gate:
        runs = subprocess.Popen(["/bin/sh", "-c", f"exec {program(tmp_path, '7')}"])
        (start,) = gate.starts(20)
        runs.kill()
        assert runs.wait(20) == -9
        gate.admit([start])
        os.close(start.pidfd)
    os.close(descriptor)
