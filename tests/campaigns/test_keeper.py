"""The result so far is kept while a campaign runs, whole and marked as not complete, and at next to no cost."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from made import LEAKCHECK, target
from waiting import PATIENCE, wait_until

from leakcheck.campaigns import Campaign, Leaks, LeaksOptions, Result, Stress, StressOptions, keeper, run
from leakcheck.campaigns.keeper import Keeper
from leakcheck.submissions import parse_specs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

LITTERS = 'mktemp /var/lib/kept-XXXXXX; exec "$@"'


def result(**fields: Any) -> Result:
    given = {"campaign": "leaks", "target": "made", "version": "", "seed": 1, "wanted": 2, "trials": 2} | fields
    return Result(**given, verdict="unknown", outcomes={}, criteria=[], findings=[])


class _Clock:
    """A clock that a result takes `cost` seconds of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self._cost = 1000.0, cost
        monkeypatch.setattr(keeper.time, "monotonic", lambda: self.now)

    def result(self) -> Result:
        self.now += self._cost
        return result()


@pytest.mark.parametrize("cost", [0.001, 0.02, 3.0])
def test_keeping_takes_less_than_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    clock, kept = _Clock(monkeypatch, cost), list[float]()
    ours = Keeper(lambda _: kept.append(clock.now), print)
    while clock.now < 2000:
        ours.offer(clock.result)
        clock.now += 0.01
    assert kept[0] == 1000 + cost
    assert len(kept) > 1
    assert (len(kept) - 1) * cost <= 0.01 * (kept[-1] - 1000)


def test_a_result_that_cannot_be_kept_is_told_once_and_the_campaign_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = _Clock(monkeypatch, 0), list[str]()

    def full(_: Result) -> None:
        raise OSError(28, "No space left on device")

    ours = Keeper(full, told.append)
    for _ in range(3):
        ours.offer(clock.result, now=True)
    assert told == ["the result so far is not kept: [Errno 28] No space left on device"]


def test_an_unfinished_result_says_why() -> None:
    assert result().unfinished == ""
    assert result(interrupted=True, complete=False).unfinished == "interrupted"
    assert result(error="no space", complete=False).unfinished == "no space"
    assert "had not ended" in Result.from_json(result(complete=False).to_json()).unfinished
    # A result of before has no such field.
    old = json.loads(result(interrupted=True).to_json())
    del old["complete"]
    assert Result.from_json(json.dumps(old)).unfinished == "interrupted"


@as_root
@pytest.mark.parametrize(
    ("campaign", "options"),
    [
        (Leaks(), LeaksOptions(iterations=6, endings=("normal",), settle=0.05)),
        (Stress(), StressOptions(submissions=30, concurrency=4, specs=parse_specs("python/exit"), settle=0.05)),
    ],
    ids=["leaks", "stress"],
)
def test_what_is_kept_has_the_findings_so_far_and_claims_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Campaign[Any, Any], options: Any
) -> None:
    monkeypatch.setattr(keeper, "_LEAST", 0)
    monkeypatch.setattr(keeper, "_COST", 0)
    kept = list[Result]()
    final = run(campaign, target(tmp_path, LITTERS), options, keep=kept.append)
    assert final.complete
    for one in kept:
        assert (one.complete, one.verdict != "clean") == (False, True)
        assert not any(criterion.passed for criterion in one.criteria)
        assert Result.from_json(one.to_json()) == one
    assert [one.trials for one in kept[:-1]] == list(range(1, final.trials + 1))
    assert {one.id for one in kept[-1].findings} == {one.id for one in final.findings}
    assert (kept[-1].verdict, final.verdict) == ("leaked", "leaked")


@as_root
def test_sigkill_at_any_instant_leaves_a_whole_result_of_the_trials_so_far_and_nothing_else(tmp_path: Path) -> None:
    made, generator = target(tmp_path, LITTERS), random.Random(14)
    place = tmp_path / "results"
    place.mkdir()
    options = ["--target", str(made.path), "--iterations", "2000", "--endings", "normal", "--settle", "0.05"]
    for number in range(2):
        output = place / f"{number}.json"
        command = [*LEAKCHECK, "leaks", *options, "-o", str(output)]
        null = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=null, stdout=null, stderr=null) as process:
            wait_until("the first result", output.exists)
            tree = psutil.Process(process.pid).children(recursive=True)
            # Between this result and some later one.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(generator.uniform(0, 1.5))
            tree += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        so_far = Result.from_json(output.read_text())
        assert (so_far.complete, so_far.verdict) == (False, "leaked")
        assert so_far.trials == sum(so_far.outcomes.values()) > 0
        _, alive = psutil.wait_procs(tree, PATIENCE)
        assert alive == []
    assert len(list(place.iterdir())) == 2
