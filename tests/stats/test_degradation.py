"""A run that gets slower is told from one that does not, and from one that is too short to tell."""

import random

import pytest

from leakcheck.stats.degradation import LIMIT, Change, Sample, changes
from leakcheck.stats.host_load import HostLoad

BASE = {"short": 0.01, "middle": 0.1, "long": 0.4}


def run(number: int, slower: float, seed: int = 1, spread: float = 0.3) -> list[Sample]:
    """Make a run of four at a time that at its end is `slower` than at its start, 0.5 being half as long again."""
    generator = random.Random(seed)
    now, samples = 0.0, []
    for position in range(number):
        group = generator.choice(list(BASE))
        took = BASE[group] * generator.lognormvariate(0, spread) * (1 + slower * position / number)
        now += took / 4
        samples.append(Sample(ended=now, took=took, group=group))
    return samples


@pytest.mark.parametrize("seed", range(5))
def test_a_long_steady_run_passes(seed: int) -> None:
    found = changes(run(6000, 0, seed))
    assert {name: change.passed for name, change in found.items()} == {"throughput": True, "p50": True, "p95": True}
    assert all(change.high is not None and change.high < LIMIT for change in found.values())


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_gets_half_as_slow_again_fails(seed: int) -> None:
    found = changes(run(6000, 0.5, seed))
    assert {name: change.passed for name, change in found.items()} == {"throughput": False, "p50": False, "p95": False}
    assert all(change.ratio is not None and 1.2 < change.ratio < 1.4 for change in found.values())


def test_what_is_as_slow_as_the_limit_is_inconclusive_and_says_why() -> None:
    found = changes(run(3000, 0.15))
    assert found["throughput"].passed is None
    assert "inconclusive" in found["throughput"].why


def test_a_short_run_is_inconclusive_and_says_how_long_it_must_be() -> None:
    found = changes(run(299, 0))
    why = "inconclusive: 299 submissions are too few, give 300 or more"
    assert found == dict.fromkeys(("throughput", "p50", "p95"), Change(why=why))


def test_an_uneven_draw_of_the_mix_is_no_degradation() -> None:
    generator = random.Random(3)
    now, samples = 0.0, []
    for position in range(3000):
        group = "long" if generator.random() < (0.2 if position < 1500 else 0.8) else "short"
        took = BASE[group] * generator.lognormvariate(0, 0.1)
        now += took / 4
        samples.append(Sample(now, took, group))
    assert all(change.passed for change in changes(samples).values())


def test_times_that_a_limit_sets_count_for_the_throughput_alone() -> None:
    samples = [Sample(index * 0.1, 1.0 + index / 900, "limit", timed=index % 2 == 0) for index in range(900)]
    timed = [Sample(s.ended, s.took if s.timed else 0.5, s.group, s.timed) for s in samples]
    assert changes(samples)["p50"].ratio == pytest.approx(changes(timed)["p50"].ratio, rel=0.01)


def test_the_same_seed_draws_the_same_interval() -> None:
    assert changes(run(900, 0.1), seed=7) == changes(run(900, 0.1), seed=7)


def test_a_slowdown_that_came_with_others_load_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    samples = [Sample(ended=n, took=0.01, group="c/hello", cpu=0.008) for n in range(90)]
    slower = Change(1.5, 1.4, 1.6, passed=False)
    for others, excused in ((0.0, False), (0.05, False), (0.5, True)):
        host_load = HostLoad()
        # Each second: all used, the driver used. In the last third others use more.
        used = [0.01 * n + others * max(0, n - 59) for n in range(90)]
        host_load._samples = [(float(n), used[n], 0.002 * n) for n in range(90)]
        change = host_load.discount(slower, samples)
        assert (change.passed is None) == excused, change
        assert ("other programs used" in change.why) == excused
    assert HostLoad().discount(Change(1.0, 0.9, 1.05, passed=True), samples).passed


def scheduled(number: int, later: float = 1) -> list[Sample]:
    """Make a run at a steady rate whose jobs become smaller; the last third comes `later` times as slowly."""
    generator, now, samples = random.Random(2), 0.0, []
    for position in range(number):
        group = generator.choices(list(BASE), weights=(1 + 3 * position / number, 1, 3 - 3 * position / number))[0]
        now += 0.1 * (later if position > 2 * number / 3 else 1)
        samples.append(Sample(ended=now + generator.uniform(0, 0.05), took=BASE[group], group=group))
    return samples


def test_submissions_that_come_at_their_times_are_counted_whatever_work_each_is() -> None:
    made = scheduled(6000)
    assert changes(made, limit=1.01)["throughput"].passed is False
    found = changes(made, limit=1.01, scheduled=True)["throughput"]
    assert (found.ratio, found.passed) == (1.0, True)


def test_a_scheduled_run_that_falls_behind_at_its_end_fails() -> None:
    found = changes(scheduled(6000, 1.05), limit=1.01, scheduled=True)["throughput"]
    assert (found.ratio, found.passed) == (1.05, False)
