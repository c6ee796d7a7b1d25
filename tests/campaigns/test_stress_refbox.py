"""The reference sandbox meets the bar: thousands of submissions, each status right, and nothing left."""

import os
from collections import Counter

import pytest
from made import failed

from leakcheck.campaigns import Result, Stress, StressOptions
from leakcheck.campaigns import run as run_campaign
from leakcheck.submissions import Mix, available
from leakcheck.targets import load

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


def found(*names: str) -> list[str]:
    here = available()
    if missing := [f"{name}: {here[name].reason}; {here[name].hint}" for name in names if not here[name].ready]:
        pytest.skip("; ".join(missing))
    return list(names)


def well(campaign: Result, submissions: int) -> None:
    """All of it was run, nothing failed, and nothing is unknown; the pace is the machine's, and no test."""
    assert failed(campaign) == [], "\n".join(map(str, campaign.findings[:20] + campaign.stalls))
    assert campaign.verdict == "clean", campaign.coverage or campaign.error
    assert campaign.outcomes == {"clean": submissions}


def test_a_hundred_mixed_submissions_get_the_right_statuses_and_leave_nothing() -> None:
    options = StressOptions(submissions=100, concurrency=6, languages=found("cpp", "java", "python"), seed=20261125)
    campaign = run_campaign(Stress(), load("refbox"), options)
    well(campaign, 100)
    wanted = {"OK": 70, "TLE": 20, "MLE": 5, "RE": 5}
    assert {status: sum(counts.values()) for status, counts in campaign.endings.items()} == wanted


def test_hostile_submissions_neither_escape_nor_change_the_status_of_the_next() -> None:
    options = StressOptions(
        submissions=120, concurrency=4, mix=Mix.parse("OK=90,OLE=10"), languages=found("c", "python"), hostile=True
    )
    campaign = run_campaign(Stress(), load("refbox"), options)
    well(campaign, 120)
    behaviours = {record.spec.partition("@")[0] for record in campaign.records}
    assert {"c/fork_bomb", "c/daemonise", "c/zombies", "c/shm_litter", "python/mounts"} <= behaviours


@pytest.mark.slow
def test_ten_thousand_mixed_submissions_get_the_right_statuses_and_leave_nothing() -> None:
    options = StressOptions(submissions=10_000, concurrency=8, languages=found("cpp", "java", "python"), seed=1)
    well(run_campaign(Stress(), load("refbox"), options), 10_000)


@pytest.mark.slow
def test_a_hundred_at_once_are_sustained_for_ten_minutes_at_a_thousand_a_minute() -> None:
    options = StressOptions(
        duration=600, concurrency=100, mix=Mix.parse("OK=85,TLE=5,MLE=5,RE=5"), languages=found("c", "cpp"), seed=2
    )
    campaign = run_campaign(Stress(), load("refbox"), options)
    well(campaign, campaign.trials)
    minutes = Counter(int(record.ended_s // 60) for record in campaign.records)
    assert min(minutes[minute] for minute in range(10)) >= 1000, minutes
