"""Endings are scheduled evenly over a run."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors.timed import KILLS, Timed
from leakcheck.campaigns.leaks import ENDINGS, schedule
from leakcheck.stats.bounds import upper_bound


@given(
    st.lists(st.sampled_from(ENDINGS), min_size=1, unique=True),
    st.lists(st.sampled_from(KILLS), min_size=1, unique=True),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_endings_take_turns_and_the_same_seed_gives_the_same(
    endings: list[str], kills: list[str], count: int, seed: int
) -> None:
    scheduled = list(schedule(endings, kills, count, 10.0, random.Random(seed)))  # type: ignore[arg-type]
    assert len(scheduled) == count
    numbers = Counter(plan.kind for plan in scheduled)
    assert max(numbers.values()) - min(numbers.get(ending, 0) for ending in endings) <= 1
    assert scheduled == list(schedule(endings, kills, count, 10.0, random.Random(seed)))  # type: ignore[arg-type]


def test_the_instants_of_a_kind_of_kill_cover_the_whole_run() -> None:
    scheduled = list(schedule(["forced"], ["supervisor", "tree"], 400, 80.0, random.Random(1)))
    for kill in ("supervisor", "tree"):
        for sleeping in (False, True):
            instants = sorted(
                one.after_ms
                for one in map(Timed.of, scheduled)
                if one.who == kill and ("sleeping" in one.plan.flags) == sleeping
            )
            assert len(instants) == 100
            # One in each hundredth of a run and a quarter.
            assert [int(instant) for instant in instants] == list(range(100))


def test_the_upper_bound_is_the_rule_of_three_for_none_and_one_for_all() -> None:
    assert upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert upper_bound(10, 10) == 1
    # Clopper and Pearson's, as tables give it: 1 in 20, one-sided 95 %.
    assert upper_bound(1, 20) == pytest.approx(0.2161, abs=0.0001)


@pytest.mark.parametrize("count", [1, 2, 15])
def test_a_kill_once_the_payload_runs_is_always_among_the_forced_ones(count: int) -> None:
    scheduled = list(schedule(["forced"], KILLS, count, 80.0, random.Random(1)))
    assert sum("@payload+" in plan.argument for plan in scheduled) >= max(1, count // 4)


def test_every_signal_is_drawn_while_the_payload_runs_and_before() -> None:
    scheduled = list(schedule(["forced"], KILLS, 60, 80.0, random.Random(1)))
    for payload in (False, True):
        alike = [plan for plan in scheduled if ("@payload+" in plan.argument) == payload]
        assert {"".join(set(plan.flags) - {"sleeping"}) for plan in alike} == {"", "sigterm", "sigint", "sighup"}
