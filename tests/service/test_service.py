"""Scenarios on a small service: what is right passes, and each planted defect is found by the scenario meant for it."""

import os
from pathlib import Path
from typing import Any

import pytest
from services import STANDIN, contract, kernels, tried

from leakcheck.errors import StoppedError, TargetError
from leakcheck.service import ServiceOptions, load_contract, run_service

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters an arena's network")

# Defect → the scenario meant for it, the outcome, and what is said of it.
DEFECTS = {
    "lost-cancel": ("S3.6", "wedged", "cancelled"),
    "survivor": ("S3.6", "false-status", "still at work"),
    "quota": ("S3.7", "false-status", "unfinished jobs at once, limit 5"),
    "orphan": ("S3.10", "leaked", "process"),
    "temp": ("S3.10", "leaked", "data/upload-"),
    "fd": ("S3.12", "false-status", "descriptors grow"),
    "drop": ("S2.1", "false-status", "lost"),
    "stuck": ("S1.5", "wedged", "still running"),
    "forgets": ("S1.5", "false-status", "not that any more"),
    "others": ("S3.4", "false-status", "expected 404"),
    "twice": ("S3.6", "false-status", "more than once"),
    "flips": ("S3.10", "false-status", "completed, and later running"),
    "ghost": ("S1.2", "false-status", "creation was refused"),
    "quota-of-many": ("S3.7", "false-status", "unfinished jobs at once, limit 5"),
    "list-busy": ("S3.8", "false-status", "busy"),
    "upload-gone": ("S1.1", "leaked", "data/part-"),
    "body-gone": ("S1.3", "leaked", "data/body-"),
    "no-expiry": ("S3.5", "false-status", "it never expires"),
    "result-of-others": ("S3.4", "false-status", "the result of another user's job"),
    "cancel-of-others": ("S3.4", "false-status", "another user's unfinished job: 200"),
    "both": ("S1.5", "false-status", "twice at the same time"),
}

# Each waits for seconds, or another test shows the same: temp that of the command, quota-of-many that of quota.
LONG = ("survivor", "twice", "stuck", "both", "fd", "temp", "quota-of-many")


def _marked(defect: str) -> Any:
    # test_judge.py has one like it.
    return pytest.param(defect, marks=pytest.mark.slow if defect in LONG else ())


@pytest.mark.parametrize("defect", [_marked(one) for one in DEFECTS])
def test_a_defect_is_found_by_the_scenario_meant_for_it(defect: str, tmp_path: Path) -> None:
    row, outcome, words = DEFECTS[defect]
    result = tried(contract(tmp_path, defect), row)
    (criterion,) = result.criteria
    assert criterion.passed is False, criterion
    assert words in criterion.measured["why"]
    (finding,) = result.findings
    assert outcome in (finding.outcome, "wedged")
    assert f"--only {row} --seed 0" in finding.replay
    assert result.verdict == ("leaked" if outcome == "leaked" else "unknown")


def test_what_is_right_passes_and_what_is_missing_is_not_applicable() -> None:
    result = tried(STANDIN, "S1.3", "S1.5", "S1.6", "S2.1", "S3.4", "S3.10")
    assert result.findings == []
    assert (result.verdict, result.complete) == ("clean", True)
    told = {one.name.split()[0]: (one.passed, one.measured) for one in result.criteria}
    assert told.pop("S1.6") == (None, "not applicable: the contract has no process with the role frontend")
    assert {passed for passed, _ in told.values()} == {True}


def test_what_is_claimed_and_was_not_tried_is_unknown(tmp_path: Path) -> None:
    result = tried(contract(tmp_path, "long-url"), "S3.5")
    (criterion,) = result.criteria
    assert (criterion.passed, result.verdict) == (None, "unknown")
    assert "no URL expires within 15 s" in criterion.measured["why"]
    assert result.findings == []


def test_a_quota_that_no_burst_can_exceed_is_not_applicable(tmp_path: Path) -> None:
    path = contract(tmp_path, limit=("active_per_user = 5", "active_per_user = 200"))
    (criterion,) = tried(path, "S3.7").criteria
    assert criterion.passed is None
    assert "a burst of 200 cannot exceed it" in criterion.measured


def test_jobs_that_end_before_they_are_counted_are_no_proof_of_a_quota(tmp_path: Path) -> None:
    short = contract(tmp_path, "quota", long=(r"seconds = 30, ", "seconds = 0, "))
    (criterion,) = tried(short, "S3.7").criteria
    assert criterion.passed is not True


def test_work_that_nothing_shows_is_unknown_after_a_cancel(tmp_path: Path) -> None:
    path = contract(tmp_path, long=(r'(long = .*), mark = "\{unique\}"', r"\1"))
    (criterion,) = tried(path, "S3.6").criteria
    assert criterion.passed is None
    assert "whether work goes on after a cancel" in criterion.measured["why"]


def test_jobs_that_only_end_by_being_deleted_or_with_the_service_pass(tmp_path: Path) -> None:
    result = tried(kernels(tmp_path), "S1.3", "S1.4", "S1.5", "S2.6", "S3.8", "S3.10")
    assert result.findings == []
    told = {one.name.split()[0]: (one.passed, one.measured) for one in result.criteria}
    assert told.pop("S3.10") == (None, "not applicable: the contract has no jobs.payload.short")
    assert {passed for passed, _ in told.values()} == {True}
    assert told["S1.5"][1]["why"] == "the run was gone"


# What is taken as right for such jobs hides neither a job that is lost nor work that goes on.
@pytest.mark.parametrize(
    ("defect", "changes", "row", "words"),
    [
        pytest.param("survivor", {}, "S2.6", "its processes still run", marks=pytest.mark.slow),  # it runs 30 s
        ("orphan", {}, "S2.6", "process"),
        ("", {"volatile": ("volatile = true", "")}, "S1.5", "lost by the restart"),
        (
            "",
            {"gone": ("gone = true", ""), "done": ("cancelled = ", 'succeeded = ["done"]\ncancelled = ')},
            "S2.6",
            "lost",
        ),
    ],
)
def test_jobs_that_may_be_gone_are_missed_otherwise(
    defect: str, changes: dict[str, tuple[str, str]], row: str, words: str, tmp_path: Path
) -> None:
    try:
        (criterion,) = tried(kernels(tmp_path, defect, **changes), row).criteria
        told = criterion.measured["why"]
    except TargetError as error:
        # Its first job tells already.
        told = str(error)
    assert words in told


def test_what_is_only_not_applicable_is_no_pass() -> None:
    assert tried(STANDIN, "S1.6").verdict == "unknown"


def test_a_service_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = contract(tmp_path, start=(r"start = .*", 'start = ["sh", "-c", "echo no such key >&2; exit 3"]'))
    with pytest.raises(TargetError, match=r"standin: api ended with 3; it printed: no such key"):
        tried(path, "S3.10")


def test_a_health_that_answers_otherwise_is_told(tmp_path: Path) -> None:
    path = contract(tmp_path, "html", health=(r'path = "/health"', 'path = "/health"\ntimeout = 4'))
    with pytest.raises(TargetError, match=r'not ready after 4(.0)? s: health /health: 500: "no"'):
        tried(path, "S3.10")


def test_a_state_that_is_not_in_the_contract_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="state 'weird', which is not in the contract"):
        tried(contract(tmp_path, "state"), "S3.10")


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    first = (
        f'[processes.api]\nstart = ["{{python}}", "{STANDIN.with_name("standin.py")}"]\nenv = {{ DATA = "{{data}}" }}'
    )
    path = contract(
        tmp_path,
        second=(r"\[processes.api\]", f"{first}\n[processes.second]"),
        env=(r"\[processes.api.env\]", "[processes.second.env]"),
    )
    # It may end before the service is ready, or during the scenario.
    try:
        (criterion,) = tried(path, "S3.12").criteria
        told = criterion.measured["why"]
    except TargetError as error:
        told = str(error)
    assert " ended with 1; it printed: " in told
    assert "Address already in use" in told


def test_a_program_that_is_missing_is_told(tmp_path: Path) -> None:
    path = contract(tmp_path, needs=(r"programs = .*", 'programs = ["leakcheck-no-such"]'))
    with pytest.raises(TargetError, match="leakcheck-no-such: not found"):
        tried(path, "S3.10")


def test_a_program_that_is_missing_beside_the_contract_is_told(tmp_path: Path) -> None:
    path = contract(tmp_path, needs=(r"programs = .*", 'programs = ["{contract_dir}/leakcheck-no-such"]'))
    with pytest.raises(TargetError, match=f"{tmp_path}/leakcheck-no-such: not found"):
        tried(path, "S3.10")


def test_a_run_that_is_stopped_has_no_result() -> None:
    with pytest.raises(StoppedError):
        run_service(load_contract(STANDIN), STANDIN, ServiceOptions(), stop=lambda: True)
