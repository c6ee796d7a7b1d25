"""What a lock can have done, and what it cannot, told by histories alone."""

from typing import Any

import pytest

from leakcheck.trials.history import Attempt, History, judge


def admitted(number: int, launched: float = 0, ended: float = 10, **more: Any) -> Attempt:
    facts = {"admitted": True, "complete": True, "status": "OK", **more}
    return Attempt(number=number, launched=launched, ended=ended, **facts)


def refused(number: int, launched: float = 2, ended: float = 4, **more: Any) -> Attempt:
    return Attempt(number=number, launched=launched, ended=ended, **{"refused": True, "status": "RE", **more})


def outcomes(*attempts: Attempt, **more: Any) -> set[str]:
    return {outcome for outcome, _ in judge(History(attempts=attempts, **more))}


def test_one_admitted_and_the_others_refused_meanwhile_is_a_lock() -> None:
    assert outcomes(admitted(0), refused(1), refused(2), admitted(3, 11, 20)) == set()


def test_a_run_that_is_refused_when_nobody_can_have_had_the_box_is_wrong() -> None:
    assert outcomes(admitted(0), refused(1, 11, 12)) == {"false-status"}
    assert outcomes(admitted(0, 20, 30), refused(1, 11, 12), refused(2, 11, 12)) == {"false-status"}


def test_a_dead_holder_has_the_box_until_the_next_one_is_admitted() -> None:
    dead = admitted(0, 0, 5, faulted=True, status="", complete=False)
    assert outcomes(dead, refused(1, 6, 7), admitted(2, 8, 20), killed=5, free=9) == set()
    assert outcomes(dead, refused(1, 21, 22), admitted(2, 8, 20), killed=5, free=9) == {"false-status"}


@pytest.mark.parametrize(("free", "wanted"), [(None, {"wedged"}), (9.0, set()), (99.0, {"wedged"})])
def test_the_box_of_a_dead_holder_is_free_again_in_time(free: float | None, wanted: set[str]) -> None:
    dead = admitted(0, 0, 5, faulted=True, status="", complete=False)
    assert outcomes(dead, refused(1, 6, 7), killed=5, free=free, within=50) == wanted


def test_two_at_once_are_a_split_brain_whatever_they_say() -> None:
    assert outcomes(admitted(0), admitted(1), overlaps=[(0, 1)]) == {"split-brain"}


@pytest.mark.parametrize(
    "attempt",
    [
        admitted(1, status="RE"),
        admitted(1, status="OK", complete=False),
        admitted(1, starts=2),
        refused(1, status="OK"),
        refused(1, waits=True),
        refused(1, refused=False),
    ],
)
def test_any_other_end_is_a_wrong_status(attempt: Attempt) -> None:
    assert outcomes(admitted(0), attempt) == {"false-status"}


def test_a_run_may_fail_if_the_lock_is_damaged_but_not_say_ok() -> None:
    assert outcomes(admitted(0), refused(1, refused=False, tolerated=True)) == set()
    assert outcomes(admitted(0), refused(1, status="OK", tolerated=True)) == {"false-status"}
    assert outcomes(refused(0, refused=False, tolerated=True)) == set()


def test_a_box_that_nobody_gets_is_wedged() -> None:
    assert outcomes(refused(0), refused(1)) == {"wedged", "false-status"}


def test_what_ran_unseen_or_may_have_run_as_a_copy_is_unknown() -> None:
    assert outcomes(admitted(0), admitted(1, unheld=True)) == {"unknown"}
    assert outcomes(admitted(0), refused(1, copied=True)) == {"unknown"}
    assert outcomes(admitted(0), refused(1), strange=["x"]) == {"unknown"}
