"""The example judge passes every scenario, and each of its planted defects is found by the scenario meant for it."""

import os
import re
import sys
from pathlib import Path

import pytest
from judged import DEFECTS, JUDGE, planted
from services import tried

sys.path.insert(0, str(JUDGE))
pytest.importorskip("fastapi", reason="needs the extra judge")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters an arena's network")


def test_each_defect_of_the_judge_has_its_scenario() -> None:
    from judge.defects import DEFECTS as PLANTED

    assert DEFECTS.keys() == {*PLANTED}


def test_the_documentation_has_each_defect_with_its_scenario() -> None:
    text = (JUDGE.parents[1] / "docs/how-to/service.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\| (S[\d.]+) \|$", text, re.MULTILINE))
    assert rows == DEFECTS


def test_a_job_of_the_judge_leaves_nothing() -> None:
    result = tried(JUDGE / "contract.toml", "S3.10")
    assert (result.verdict, result.findings) == ("clean", [])


@pytest.mark.slow  # three minutes: all scenarios, each with a start of all processes.
def test_the_judge_passes_every_scenario_that_applies() -> None:
    result = tried(JUDGE / "contract.toml")
    assert {one.name.split()[0]: one.measured for one in result.criteria if one.passed is False} == {}
    assert (result.verdict, result.complete) == ("clean", True)
    missing = {one.name.split()[0]: one.measured for one in result.criteria if one.passed is None}
    assert [why for why in missing.values() if "on this machine" not in str(why)] == []


@pytest.mark.slow  # some seconds each.
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_judge_is_found_by_the_scenario_meant_for_it(defect: str, tmp_path: Path) -> None:
    result = tried(planted(tmp_path, defect), DEFECTS[defect])
    (criterion,) = result.criteria
    if criterion.passed is None and "apt-get install redis-server" in str(criterion.measured):
        pytest.skip("no redis-server")
    assert criterion.passed is False, criterion
    assert len(result.findings) == 1


@pytest.mark.slow  # a minute: two browsers.
def test_the_judge_passes_in_a_browser() -> None:
    result = tried(JUDGE / "contract.toml", "S1.7", "S1.8")
    told = {one.name.split()[0]: one.measured for one in result.criteria if one.passed is None}
    if any("on this machine" in str(why) for why in told.values()):
        pytest.skip(str(told))
    assert (result.verdict, result.findings) == ("clean", [])


@pytest.mark.slow  # ten races each.
@pytest.mark.parametrize("defect", ["lost-cancel", "quota-race"])
def test_a_race_is_found_with_every_seed(defect: str, tmp_path: Path) -> None:
    path = planted(tmp_path, defect)
    for seed in range(10):
        (criterion,) = tried(path, DEFECTS[defect], seed=seed).criteria
        assert criterion.passed is False, (seed, criterion)
