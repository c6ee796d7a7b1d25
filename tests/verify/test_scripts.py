"""The commands that QA-REL-001 names run, with the document's options, from anywhere."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(tmp_path: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [SCRIPTS / name, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("stress_test.sh", ["--duration", "60", "--submissions", "8", "--languages", "python"], "8 submissions"),
        (
            "concurrent_stress.sh",
            ["--duration", "2", "--concurrency", "4", "--languages", "python"],
            r"\d+ submissions",
        ),
        ("resource_exhaustion.sh", ["--profile", "quick", "--iterations", "4"], "4 trials"),
        ("leak_check_stress.sh", ["--iterations", "4"], "4 trials"),
    ],
)
def test_each_is_thin_over_the_command(tmp_path: Path, name: str, arguments: Sequence[str], said: str) -> None:
    done = run(tmp_path, name, *arguments)
    assert re.search(rf"leakcheck: clean, refbox \(.*\), {said}, seed 0", done.stderr), done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*_*.sh")))
def test_a_wrong_option_is_exit_2_with_its_name(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, name, "--odd")
    assert (done.returncode, "--odd" in done.stderr) == (2, True), done.stderr
