"""Endings are scheduled evenly, and their plans parse back."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakcheck import UsageError
from leakcheck.stats.bounds import upper_bound
from leakcheck.trials.ending import ENDINGS, KILLS, Ending, parse, schedule

forced = st.builds(
    Ending,
    st.just("forced"),
    st.sampled_from(KILLS),
    st.floats(0, 1e5).map(lambda ms: round(ms, 3)),
    st.booleans(),
)
plain = st.sampled_from(["normal", "timeout", "crash:signal", "crash:exit"]).map(Ending)


@given(forced | plain)
def test_a_plan_parses_back(ending: Ending) -> None:
    assert parse(ending.plan) == ending


def test_a_kill_that_nobody_would_wait_for_is_refused() -> None:
    with pytest.raises(UsageError, match="the kill comes after an hour at most"):
        parse("forced:supervisor@99999999999ms")
    assert parse("forced:supervisor@3600000ms").after_ms == 3_600_000


@pytest.mark.parametrize(
    "plan", ["", "forced", "forced:me@1ms", "forced:tree@ms", "crash", "normal ", "forced:tree@1s"]
)
def test_what_is_no_plan_is_refused_with_those_that_are(plan: str) -> None:
    with pytest.raises(UsageError, match=r"give normal, timeout, crash:signal, crash:exit or forced:WHO@MSms"):
        parse(plan)


@given(
    st.lists(st.sampled_from(ENDINGS), min_size=1, unique=True),
    st.lists(st.sampled_from(KILLS), min_size=1, unique=True),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_endings_come_by_turns_and_the_same_seed_deals_the_same(
    endings: list[str], kills: list[str], count: int, seed: int
) -> None:
    scheduled = list(schedule(endings, kills, count, 10.0, random.Random(seed)))  # type: ignore[arg-type]
    assert len(scheduled) == count
    numbers = Counter(ending.group for ending in scheduled)
    assert max(numbers.values()) - min(numbers.get(ending, 0) for ending in endings) <= 1
    assert scheduled == list(schedule(endings, kills, count, 10.0, random.Random(seed)))  # type: ignore[arg-type]


def test_the_instants_of_a_kind_of_kill_cover_the_whole_run() -> None:
    scheduled = list(schedule(["forced"], ["supervisor", "tree"], 400, 80.0, random.Random(1)))
    for kill in ("supervisor", "tree"):
        for sleeping in (False, True):
            instants = sorted(one.after_ms for one in scheduled if one.kill == kill and one.sleeping == sleeping)
            assert len(instants) == 100
            # One in each hundredth of a run and a quarter.
            assert [int(instant) for instant in instants] == list(range(100))


def test_the_upper_bound_is_the_rule_of_three_for_none_and_one_for_all() -> None:
    assert upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert upper_bound(10, 10) == 1
    # Clopper and Pearson's, as tables give it: 1 in 20, one-sided 95 %.
    assert upper_bound(1, 20) == pytest.approx(0.2161, abs=0.0001)
