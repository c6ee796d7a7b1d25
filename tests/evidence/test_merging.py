"""A sweep that is put together from shards is no better than one of them, nor than what nobody tried."""

import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from made import LEAKCHECK, target

from injectors.crash import Point
from leakcheck.campaigns import Crash, CrashOptions
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.engine import judged
from leakcheck.campaigns.machine import Machine
from leakcheck.evidence import Store, merge
from leakcheck.targets import Target
from leakcheck.trials.case import case_of
from leakcheck.trials.crash_points import Points, Recorded
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.trial import Trial

LITTER = Remnant("file", "orphaned", "file /var/lib/x", stage="run", place="/var/lib/x")


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def query_and_commit(store: Path, text: str) -> None:
    connection = sqlite3.connect(store)
    connection.execute(text)
    connection.commit()
    connection.close()


@pytest.fixture
def made(tmp_path: Path) -> Target:
    return target(tmp_path, 'exec "$@"')


def recorded(*names: str) -> list[Recorded]:
    return [Recorded(Point("launch", "0", "mkdir", name, 1), "setup", "") for name in names]


def shard(
    made: Target,
    path: Path,
    number: int,
    points: Sequence[Recorded],
    *,
    leaks: bool = False,
    interrupted: bool = False,
    **more: Any,
) -> Path:
    """Record a shard of a sweep of these points in the store at `path`, of which all plans were tried."""
    options, campaign = CrashOptions(schedule="immediate", shard=f"{number}/2", **more), Crash()
    facts = Points([*points], [], [])
    plans = [*campaign.plans(options, facts.points)]
    outcome: Any = frozenset({"leaked"} if leaks else set())
    trials = [
        Trial(case=case_of(plan, made.adapter.shortest_wall), outcomes=outcome, left=[LITTER] * leaks) for plan in plans
    ]
    found: Made[Any, Trial] = Made(made, options, trials, facts, None, wanted=len(trials) + interrupted, took=1)
    result = judged(campaign, found, made.version(), Machine(live=False), interrupted=interrupted)
    with Store(path, create=True) as store, store.record(campaign, made, options, resume=False) as recording:
        recording.begin(len(trials), [])
        recording.end(trials, result, msgspec.json.encode(facts), 1)
    return path


def both(count: int) -> tuple[list[Recorded], list[Recorded]]:
    """Return so many points of which the plans are the first shard's, and as many that are the second's."""
    of: tuple[list[Recorded], list[Recorded]] = ([], [])
    for name in (f"/p{number}" for number in range(200)):
        (one,) = recorded(name)
        (plan,) = Crash().select(CrashOptions(schedule="immediate"), [one])
        of[crc32(str(plan).encode()) % 2].append(one)
    return of[0][:count], of[1][:count]


def merged(tmp_path: Path, *stores: Path) -> tuple[str, list[str]]:
    log: list[str] = []
    with Store(tmp_path / "all.db", create=True) as into:
        found = merge(stores, into, log.append)
        return found.verdict, [*log, *(gap for run in found.whole for gap in _gaps(into, run))]


def _gaps(store: Store, run: Any) -> list[str]:
    result = store.result(run)
    return [] if result is None else [*result.coverage.values()]


def test_shards_that_tried_all_points_of_each_other_are_clean(tmp_path: Path, made: Target) -> None:
    first, second = both(2)
    stores = [shard(made, tmp_path / f"{number}.db", number, [*first, *second]) for number in (1, 2)]
    assert merged(tmp_path, *stores)[0] == "clean"
    assert merged(tmp_path, *stores)[0] == "clean"
    with Store(tmp_path / "all.db") as into:
        assert [run.options["shard"] for run in into.runs()] == ["1/2", "2/2", "1/1"]


def test_a_point_that_only_the_other_shard_knew_is_not_covered(tmp_path: Path, made: Target) -> None:
    first, second = both(2)
    one = shard(made, tmp_path / "1.db", 1, [*first[:1], *second])
    two = shard(made, tmp_path / "2.db", 2, [*first, *second])
    verdict, said = merged(tmp_path, one, two)
    assert verdict == "unknown"
    assert "1 plans of the whole sweep are in no shard" in said[-1]


def test_a_sweep_that_was_to_try_some_points_only_is_not_said_to_lack_the_others(tmp_path: Path, made: Target) -> None:
    first, second = both(3)
    stores = [shard(made, tmp_path / f"{n}.db", n, [*first, *second], iterations=1) for n in (1, 2)]
    assert merged(tmp_path, *stores)[0] == "clean"


def test_of_a_shard_that_was_made_twice_the_one_that_leaked_counts(tmp_path: Path, made: Target) -> None:
    first, second = both(1)
    stores = [
        shard(made, tmp_path / "1.db", 1, [*first, *second], leaks=True),
        shard(made, tmp_path / "1.db", 1, [*first, *second]),
        shard(made, tmp_path / "2.db", 2, [*first, *second]),
    ]
    assert merged(tmp_path, *stores[1:])[0] == "leaked"


def test_without_all_shards_of_this_version_a_sweep_is_unknown_whatever_an_earlier_one_was(
    tmp_path: Path, made: Target
) -> None:
    first, second = both(1)
    stores = [shard(made, tmp_path / f"{number}.db", number, [*first, *second]) for number in (1, 2)]
    assert merged(tmp_path, *stores)[0] == "clean"
    again = shard(made, tmp_path / "next.db", 1, [*first, *second])
    query_and_commit(again, """UPDATE runs SET tested = replace(tested, '"version":"', '"version":"2')""")
    verdict, said = merged(tmp_path, again)
    assert (verdict, "shards 2/2 are missing" in said[-1]) == ("unknown", True)
    # A whole sweep of before decides nothing about what is merged now.
    assert merged(tmp_path, stores[0])[0] == "clean"
    leaked = shard(made, tmp_path / "leaked.db", 1, [*first, *second], leaks=True)
    query_and_commit(leaked, """UPDATE runs SET tested = replace(tested, '"version":"', '"version":"3')""")
    assert merged(tmp_path, leaked)[0] == "leaked"
    done = command("merge", leaked, "--store", tmp_path / "all.db")
    assert (done.returncode, "are missing" in done.stderr) == (1, True), done.stderr


def test_a_shard_that_was_interrupted_last_is_not_there(tmp_path: Path, made: Target) -> None:
    first, second = both(1)
    stores = [shard(made, tmp_path / f"{number}.db", number, [*first, *second]) for number in (1, 2)]
    cut = shard(made, tmp_path / "cut.db", 2, [*first, *second], interrupted=True)
    assert merged(tmp_path, *stores, cut)[0] == "unknown"


def test_shards_of_programs_with_another_content_are_not_one_sweep(tmp_path: Path, made: Target) -> None:
    first, second = both(1)
    stores = [shard(made, tmp_path / f"{number}.db", number, [*first, *second]) for number in (1, 2)]
    query_and_commit(stores[1], """UPDATE runs SET tested = json_set(tested, '$.contents', json('{"sh":"another"}'))""")
    done = command("merge", *stores, "--store", tmp_path / "all.db")
    assert (done.returncode, "different targets: contents is" in done.stderr) == (2, True), done.stderr


def test_of_two_copies_of_a_run_that_both_went_on_the_worse_one_counts(tmp_path: Path, made: Target) -> None:
    first, second = both(1)
    points = [*first, *second]
    one, two = (shard(made, tmp_path / f"{number}.db", number, points) for number in (1, 2))
    bad = shard(made, tmp_path / "bad.db", 1, points, leaks=True)
    with Store(one) as opened:
        (uid,) = (run.uid for run in opened.runs())
    query_and_commit(bad, f"UPDATE runs SET uid = '{uid}'")
    assert merged(tmp_path, one, two)[0] == "clean"
    assert merged(tmp_path, bad, two)[0] == "leaked"
    # And it stays so.
    assert merged(tmp_path, one, two)[0] == "leaked"


def test_a_whole_sweep_that_was_cut_off_while_it_was_added_is_completed(tmp_path: Path, made: Target) -> None:
    first, second = both(1)
    stores = [shard(made, tmp_path / f"{number}.db", number, [*first, *second], leaks=True) for number in (1, 2)]
    assert merged(tmp_path, *stores)[0] == "leaked"
    query_and_commit(
        tmp_path / "all.db", "UPDATE runs SET state = 'running', result = NULL, verdict = NULL WHERE id = 3"
    )
    assert merged(tmp_path, *stores)[0] == "leaked"
    with Store(tmp_path / "all.db") as into:
        assert [run.state for run in into.runs()] == ["ended"] * 3
