"""`faults` finds each planted bug of a clean-up, with the right outcome and its cause; what handles all is clean."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from made import target

from injectors import Plan, parse
from leakcheck.campaigns import Faults, FaultsOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.result import Finding
from leakcheck.strategies import plans
from leakcheck.targets import Target
from leakcheck.trials.case import case_of
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.trial import run_trial

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

INPUTS = Path(__file__).parent / "inputs"
MOUNT = "/var/lib/planted-mount"
UMOUNT = f"launch:0/umount({MOUNT})#1"
BUSY: dict[str, Any] = {"syscalls": ("umount", "rmdir", "unlink"), "errno": ("EBUSY",)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("planted") / "planted"
    subprocess.run(["cc", "-O1", "-o", found, INPUTS / "planted.c"], check=True)
    return found


@pytest.fixture
def sandbox(program: Path, tmp_path: Path) -> Any:
    def made(bug: str) -> Target:
        return target(
            tmp_path,
            f'exec {program} {bug} "$@"',
            recover=f"exec {program} recover",
            more=f"binds = ['{program.parent}']",
            name=bug,
        )

    return made


def run(made: Target, **options: Any) -> Result:
    return run_campaign(Faults(), made, FaultsOptions(settle=0.1, **options))


def of(result: Result, outcome: str) -> dict[str, Finding]:
    """Return the findings of an outcome by the plans that show them."""
    return {end.plan: one for one in result.findings for end in one.endings if end.outcome == outcome}


def test_a_sandbox_that_handles_each_failing_step_is_clean(sandbox: Any) -> None:
    result = run(sandbox("handles"), **BUSY)
    assert result.verdict == "clean", result.findings
    assert result.outcomes.keys() <= {"clean", "recovered"}
    assert result.points["hit"] == result.points["seen"] >= 8
    assert not result.points["not_reached"]


def test_ignored_errors_are_silent_and_the_explanation_names_resource_calls_and_function(sandbox: Any) -> None:
    silent = of(run(sandbox("ignores"), phase="cleanup", syscalls=("umount",), errno=("EBUSY",)), "silent")
    assert silent.keys() == {f"{UMOUNT}:EBUSY", f"{UMOUNT.replace('#1', '#*')}:EBUSY"}
    told = silent[f"{UMOUNT}:EBUSY"].explanation
    assert told is not None
    life = next(one for one in told.lives if one.kind == "mount")
    assert (life.created, life.released) == (f"launch:0/mount({MOUNT})#1", UMOUNT)
    assert life.how == "under the fault that call returned EBUSY"
    assert [one.function for one in told.stack if one.program.endswith("/planted")][:2] == ["release_mount", "main"]


@pytest.mark.slow  # A sweep; the others of this file show the rest.
def test_what_is_released_before_its_record_is_lost_to_the_recovery(sandbox: Any) -> None:
    result = run(sandbox("order"), phase="cleanup", **BUSY)
    # The recovery reports success, and leaves it; the next run cannot remove its own mount point.
    assert f"launch:0/rmdir({MOUNT})#1:EBUSY" in of(result, "silent")
    assert UMOUNT + ":EBUSY" in of(result, "wedged")
    (recovery,) = of(result, "wedged")[UMOUNT + ":EBUSY"].recovery
    assert recovery.exit == 0


def test_what_is_released_twice_damages_the_host(sandbox: Any) -> None:
    options: dict[str, Any] = {"mode": "after", "phase": "cleanup", "syscalls": ("umount",), "errno": ("EBUSY",)}
    (finding,) = [one for one in run(sandbox("double"), **options).findings if one.ending == "launch"]
    assert any("/dev/mqueue" in one for left in finding.leaks for one in left.labels if left.class_ == "damaged")


def test_an_error_that_says_that_nothing_is_there_is_believed(sandbox: Any) -> None:
    result = run(sandbox("enoent"), phase="cleanup", syscalls=("rmdir",), errno=("ENOENT",))
    assert len(of(result, "silent")) == 4


def test_a_run_whose_end_was_not_learned_and_that_reports_success_has_a_false_status(sandbox: Any) -> None:
    result = run(sandbox("wait"), phase="cleanup", ending="crash", syscalls=("wait",))
    assert "launch:0/wait#1:after:ECHILD,crash" in of(result, "false-status")


@pytest.mark.slow
def test_a_bug_that_needs_two_failing_steps_is_found_and_shrinks_to_them(sandbox: Any) -> None:
    made = sandbox("two")

    def fails(plan: Plan) -> bool:
        return bool(run_trial(made, case_of(plan), 0, live=False, settle=0.1).outcomes & {*FAILING})

    some = plans(made, faults=2).filter(lambda plan: "recover:" not in str(plan) and "SIG" not in str(plan))
    quick = settings(
        max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    found = str(hypothesis.find(some, fails, settings=quick))
    assert found == f"launch:0/rmdir({MOUNT})#1:EBUSY+launch:0/rmdir(/var/lib/planted)#1:EBUSY"
    assert not any(fails(parse(one)) for one in (found.partition("+")[0], found.partition("+")[2]))
