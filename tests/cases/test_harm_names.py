"""Names of what leaked say nothing to a CI runner, wherever they are shown."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from leakcheck.render import printable
from tests.cases.conftest import CASE

INPUTS = Path(__file__).parent / "inputs"
PLACE = Path(f"/tmp/{CASE}-names")
SPOKEN = re.compile(
    r"##[\w.-]*\[|^\s*::[a-z]|::(error|warning)\b|%0[ad]|section_start:|##teamcity|^\s*(---|\+\+\+|\^\^\^)|[\x1b\x9b\u202e]",
    re.IGNORECASE | re.MULTILINE,
)


@pytest.fixture(autouse=True)
def removed() -> Generator[None, None, None]:
    shutil.rmtree(PLACE, ignore_errors=True)
    yield
    shutil.rmtree(PLACE, ignore_errors=True)


def test_a_guards_text_holds_no_command_and_its_json_has_the_names(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "leakcheck", "guard", "--kinds", "file", "--settle", "0.05", "-o", report]
    done = subprocess.run(
        [*command, "--", sys.executable, INPUTS / "names.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert not SPOKEN.search(done.stderr), done.stderr
    assert done.stderr.count(f"{PLACE}/") >= 8
    paths = [leak["evidence"]["resource"]["path"] for leak in json.loads(report.read_text())["leaks"]]
    assert f"{PLACE}/##[error]azure" in paths


def test_json_on_stdout_holds_no_command_and_reads_back_the_same() -> None:
    command = [sys.executable, "-m", "leakcheck", "guard", "--kinds", "process", "--settle", "0.05", "--json"]
    done = subprocess.run(
        [*command, "--", "true", "##[error]x", "##vso[y]"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "##" not in done.stdout
    assert json.loads(done.stdout)["command"]["argv"] == ["true", "##[error]x", "##vso[y]"]


def test_pytests_output_holds_no_command(tmp_path: Path) -> None:
    suite = tmp_path / "test_names.py"
    suite.write_text(
        "import pytest, runpy\n"
        "@pytest.mark.parametrize('name', ['x'], ids=['##[error]id'])\n"
        f"def test_it(name): runpy.run_path({str(INPUTS / 'names.py')!r})\n"
    )
    options = ["-p", "no:cacheprovider", "--leakcheck", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, suite],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    # pytest itself shows a test's id as it is.
    ours = [line for line in done.stdout.splitlines() if str(PLACE) in line or line.startswith("LEAKED test")]
    assert len(ours) >= 9
    assert not SPOKEN.search("\n".join(ours)), ours


COMMANDS = [
    "{}",
    "guard --kinds {} -- true",
    "guard --roots /{} -- true",
    "guard -- /{}",
    "reap --diff {}",
    "leaks --target {}",
    "stress --submission {}",
    "snapshot -o /{}/x",
]
ARGUMENTS = ["::error::x", "##vso[task.setvariable variable=x]v", "x\n::error::y", "\x1b]0;x\x07", "\u202ex"]


@pytest.mark.parametrize(
    ("command", "argument"),
    [*((command, "##[error]x") for command in COMMANDS), *((COMMANDS[0], argument) for argument in ARGUMENTS)],
)
def test_errors_hold_no_command(command: str, argument: str) -> None:
    argv = [word.replace("{}", argument) for word in command.split()]
    command_line = [sys.executable, "-m", "leakcheck", *argv]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (2, 4), done.stderr
    assert done.stderr.startswith("leakcheck: ")
    assert len(done.stderr.splitlines()) == 1
    assert not SPOKEN.search(done.stderr), done.stderr


def test_what_is_shown_is_only_changed_where_it_speaks() -> None:
    assert printable("tests/test_x.py::TestX::test_y") == "tests/test_x.py::TestX::test_y"
    assert printable("a ##[group]b") == r"a #\x23[group]b"
