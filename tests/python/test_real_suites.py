"""Suites of other projects under --leakcheck: their results stay the same, and what is reported is really left.

Each is installed from the package index, with its tests from the sdist, into a directory of its own.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RECORDER = """
import json, os

reports = []

def pytest_runtest_logreport(report):
    found = getattr(report, "leakcheck", None) or {}
    reports.append([report.nodeid, report.when, report.outcome, found])

def pytest_unconfigure():
    with open(os.environ["RECORD"], "w") as file:
        json.dump(reports, file)
"""


@dataclass(frozen=True)
class Suite:
    """A suite, and what its tests are known to leave, by a look at their code."""

    package: str
    needs: Sequence[str] = ()
    arguments: Sequence[str] = ()
    leaks: Mapping[str, str] = field(default_factory=dict)
    """A regular expression for every leak of a test."""
    by_chance: Mapping[str, str] = field(default_factory=dict)
    """The same, where a test leaves it only now and then."""


SUITES = [
    Suite(
        "psutil==7.2.2",
        arguments=[
            *("tests/test_process.py", "tests/test_posix.py", "tests/test_testutils.py"),
            # They list what their own process has: mappings, among which leakcheck has perf events outside of the
            # initial pid namespace, and descriptors, of which its threads open and close some.
            "--deselect=tests/test_process.py::TestProcess::test_memory_maps",
            "--deselect=tests/test_process.py::TestProcess::test_num_fds",
        ],
        by_chance={
            # It loads a copy of any library of the process with ctypes, removes the file, and never unloads it.
            "test_process.py::TestProcess::test_memory_maps_lists_lib": r"deleted file /tmp/@psutil-\S+ still mapped",
        },
    ),
    Suite(
        "pexpect==4.9.0",
        needs=["ptyprocess==0.7.0"],
        # The others wait for minutes, talk to ssh, or fail at times without leakcheck, too (async).
        arguments=[
            *(f"tests/test_{name}.py" for name in ("filedescriptor", "popen_spawn", "run", "misc", "isalive")),
            *(f"tests/test_{name}.py" for name in ("constructor", "interact", "log", "unicode", "winsize", "which")),
        ],
        leaks={
            # Both open a file, give its descriptor to fdspawn, and close neither.
            "test_filedescriptor.py::ExpectTestCase::test_fd": r"fd .*/TESTDATA.txt · made at tests/test_f\S+:33 ",
            "test_filedescriptor.py::ExpectTestCase::test_maxread": r"fd .*/TESTDATA.txt · made at tests/test_f\S+:40 ",
            # Both end while their cat still waits for input. PopenSpawn has no close(), and its reader waits for cat.
            "test_popen_spawn.py::ExpectTestCase::test_bad_arg": r"process .*: cat |fd .* pipe:",
            "test_popen_spawn.py::ExpectTestCase::test_expect_timeout": r"process .*: cat |fd .* pipe:",
        },
    ),
    Suite(
        "filelock==3.20.0",
        needs=["pytest-asyncio==1.3.0", "pytest-mock==3.15.1", "pytest-timeout==2.4.0"],
        # The rest is of virtualenv.
        arguments=["tests/test_filelock.py", "tests/test_async_filelock.py", "tests/test_error.py"],
        by_chance={
            # It drops a lock without a release, so the lock and its file stay. Then __del__ makes a task, and the end
            # of the loop cancels it unless a thread has closed the file by then.
            f"test_async_filelock.py::test_wait_message_logged[{kind}]": r"fd .*/a · made at |lock .*/a · taken by "
            for kind in ("AsyncSoftFileLock", "AsyncUnixFileLock")
        },
    ),
]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.package)
def test_a_real_suite_has_the_same_results_and_only_leaks_that_are_real(suite: Suite, tmp_path: Path) -> None:
    install(suite, tmp_path)
    plain, guarded = run(suite, tmp_path), run(suite, tmp_path, "--leakcheck")
    assert results(guarded) == results(plain)
    known = {**suite.leaks, **suite.by_chance}
    leaks: dict[str, list[str]] = {}
    for name, _, _, found in guarded:
        if lines := [line for line in found.get("leaks", {}).values() if line]:
            leaks[name.removeprefix("tests/")] = lines
    assert suite.leaks.keys() <= leaks.keys() <= known.keys(), leaks
    unknown = [(name, found["unattributed"], found["unknown"]) for name, _, _, found in guarded if found]
    assert not [one for one in unknown if one[1] or one[2]]
    for name, lines in leaks.items():
        assert all(re.search(known[name], line) for line in lines), lines


def install(suite: Suite, place: Path) -> None:
    """Install the package and the tests of its sdist, or skip if the index cannot be reached."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "1"]
    for options in (
        ["install", "--no-deps", "--target", "lib", suite.package, *suite.needs],
        ["download", "--no-deps", "--no-binary", ":all:", "--dest", "sdist", suite.package],
    ):
        done = subprocess.run(
            [*pip, *options],
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"pip cannot get {suite.package}: {done.stdout.strip().splitlines()[-1]}")
    (sdist,) = (place / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (unpacked,) = place.glob("*/tests")
    # Not beside the package's source, which lacks what is compiled.
    unpacked.rename(place / "tests")
    (place / "pytest.ini").write_text("[pytest]\nmarkers = xdist_group\n")
    (place / "lib" / "recorder.py").write_text(RECORDER)
    (place / "root").mkdir()


def run(suite: Suite, place: Path, *options: str) -> list[Any]:
    """Run the suite and return its reports."""
    record = place / "record.json"
    # Else pytest's own base, which has a rule, would be the suite's parent.
    changes = {"PYTHONPATH": str(place / "lib"), "RECORD": str(record), "PYTEST_DEBUG_TEMPROOT": str(place / "root")}
    argv = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "recorder",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "ignore",
        *options,
    ]
    with (place / "output").open("w") as output:
        subprocess.run(
            [sys.executable, *argv, *suite.arguments],
            cwd=place,
            env=os.environ | changes,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=1200,
        )
    assert record.exists(), (place / "output").read_text()
    reports: list[Any] = json.loads(record.read_text())
    record.unlink()
    assert len(reports) > 100
    return reports


def results(reports: list[Any]) -> dict[tuple[str, str], str]:
    """Return the result of each phase of each test, as if nothing had leaked."""
    return {(name, when): "passed" if found.get("leaked") else outcome for name, when, outcome, found in reports}
