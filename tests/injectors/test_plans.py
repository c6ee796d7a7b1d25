"""Hypothesis draws plans of a target's crash points; they shrink to the first instant and the simplest kill."""

import os
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from made import target

from injectors import Plan
from injectors.crash import Crash
from injectors.syscalls import Syscalls
from leakcheck.strategies import plans
from leakcheck.targets import Target
from leakcheck.trials.case import case_of
from leakcheck.trials.trial import run_trial

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

QUICK = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MAKES = 'mkdir /var/lib/plan-made; "$@"; code=$?; rmdir /var/lib/plan-made; exit $code'


@pytest.fixture
def made(tmp_path: Path) -> Target:
    return target(tmp_path, MAKES, recover="rm -rf /var/lib/plan-made")


def test_each_plan_is_of_a_point_that_the_target_has(made: Target) -> None:
    drawn: set[str] = set()

    @QUICK
    @hypothesis.given(plans(made, signals=("SIGKILL", "SIGTERM")))
    def draw(plan: Plan) -> None:
        drawn.add(str(Crash.of(plan).point))
        assert ("sleeping" in plan.flags) == (plan.kind == "recover")

    draw()
    assert {"0.1/mkdir(/var/lib/plan-made)#1", "0/unlink(/var/lib/plan-made)#1"} & drawn
    assert "0.1/mkdir(/var/lib/elsewhere)#1" not in drawn


def test_a_plan_shrinks_to_the_first_instant_and_the_simplest_kill(made: Target) -> None:
    def smallest(condition: str) -> str:
        strategy = plans(made, signals=("SIGTERM", "SIGKILL"))
        return str(hypothesis.find(strategy, lambda plan: condition in str(plan), settings=QUICK))

    assert smallest("launch") == "launch:0/clone#1:before:SIGTERM"
    assert smallest("mkdir(") == "launch:0.1/mkdir(/var/lib/plan-made)#1:before:SIGTERM"
    assert smallest("freeze") == "launch:0/clone#1:before:SIGKILL,freeze"


def test_it_finds_a_kill_that_leaks(tmp_path: Path) -> None:
    made = target(tmp_path, MAKES)

    def leaks(plan: Plan) -> bool:
        return bool(run_trial(made, case_of(plan), 0, live=False, settle=0.1).outcomes & {"leaked", "wedged"})

    quick = settings(QUICK, max_examples=30, phases=[Phase.generate])
    found = hypothesis.find(plans(made, victims=["freeze"]), leaks, settings=quick)
    assert leaks(found), "it shows it again"


def test_pairs_of_faults_shrink_to_the_smallest_plan_that_still_leaks(tmp_path: Path) -> None:
    place = "/var/lib/plan-made"
    made = target(tmp_path, MAKES)

    def smallest(*operations: str) -> str:
        def fails(plan: Plan) -> bool:
            return {*operations} <= {one.point.operation for one in Syscalls.of(plan).faults}

        return str(hypothesis.find(plans(made, faults=2), fails, settings=settings(QUICK, max_examples=300)))

    one = f"launch:0.3/rmdir({place})#1:EBUSY"
    assert smallest("rmdir") == one
    first, second = smallest("rmdir", "wait").split("+launch:")
    assert {first.removeprefix("launch:"), second} >= {one.removeprefix("launch:")}
