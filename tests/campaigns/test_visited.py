"""The map of a sweep has each point in order, with what its plans came to, and no more than a page can draw."""

import os
from pathlib import Path

import msgspec
import pytest
from made import target

from injectors import Plan
from injectors.crash import Point
from leakcheck.campaigns import Crash, CrashOptions, Faults, FaultsOptions, Result, run
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.visited import MOST, Visited, tried_of, visited
from leakcheck.submissions import BUILTIN
from leakcheck.trials.case import Case
from leakcheck.trials.crash_points import Points, Recorded
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.spans import Spans
from leakcheck.trials.trial import Trial

root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


def points(result: Result) -> list[Visited]:
    return msgspec.convert(result.points["map"], list[Visited])


@pytest.mark.parametrize(
    ("plan", "point", "when"),
    [
        ("launch:0/mount(/proc)#2:before:SIGKILL,quiesced", "launch:0/mount(/proc)#2", "before"),
        ("launch:0/exit#1:after:SIGTERM", "launch:0/exit#1", "after"),
        ("launch:0/rmdir(cgroup)#*:EBUSY", "launch:0/rmdir(cgroup)#1", "fault"),
        ("recover:0/unlink(/a)#3+:after:EIO", "recover:0/unlink(/a)#3", "fault"),
        ("finish:0.1/kill#1:delay=100ms+launch:0/wait#1:EINTR", "finish:0.1/kill#1", "fault"),
    ],
)
def test_a_plan_belongs_to_its_first_call(plan: str, point: str, when: str) -> None:
    assert tried_of(Plan.read(plan)) == (point, when)


@root
def test_the_map_of_a_sweep_names_each_finding_where_it_came(tmp_path: Path) -> None:
    made = target(tmp_path, 'mkdir /var/lib/box; rm -r /var/lib/box; "$@"')
    result = run(Crash(), made, CrashOptions(schedule="immediate", settle=0.1))
    known = points(Result.from_json(result.to_json()))
    assert len(known) == result.points["seen"]
    assert result.points["map_left_out"] == 0
    order = [one.point for one in known if "/var/lib/box" in one.point]
    assert [name.partition("/")[2] for name in order] == ["mkdir(/var/lib/box)#1", "rmdir(/var/lib/box)#1"]
    failing = [one for one in known if not {*FAILING}.isdisjoint(one.outcome.values())]
    assert failing
    ids = {finding.id for finding in result.findings}
    for one in failing:
        assert one.shows
        assert all(shown.finding in ids for shown in one.shows)
        assert {tried_of(Plan.read(shown.plan))[0] for shown in one.shows} == {one.point}
    # Each worst outcome is that of one of its trials.
    counted = {outcome for one in known for outcome in one.outcome.values()}
    assert counted <= result.outcomes.keys()
    spans = msgspec.convert(result.points["lives"], Spans)
    (box,) = [span for span in spans.spans if span.label == "/var/lib/box"]
    assert (box.kind, spans.calls[box.begin], spans.calls[box.end or 0]) == ("directory", box.created, box.released)
    assert "mkdir" in box.created
    assert "rmdir" in box.released


@root
def test_points_of_another_phase_and_plans_that_were_not_drawn_are_there_untried(tmp_path: Path) -> None:
    made = target(tmp_path, 'mkdir /var/lib/box; "$@"; rmdir /var/lib/box')
    result = run(Faults(), made, FaultsOptions(iterations=1, settle=0.1))
    known = points(result)
    assert len(known) == result.points["seen"]
    assert sum(bool(one.outcome) for one in known) == 1


@root
def test_a_replay_line_has_no_map(tmp_path: Path) -> None:
    made = target(tmp_path, '"$@"')
    plan = Plan.read("launch:0/execve#1:before:SIGKILL")
    assert "map" not in run(Crash(), made, CrashOptions(plan=plan, iterations=1)).points


def test_a_map_is_bounded_and_keeps_the_failures(tmp_path: Path) -> None:
    recorded = [
        Recorded(Point("launch", "0", "mkdir", "/a", number), "setup", "setup") for number in range(1, 2 * MOST + 1)
    ]
    submission = BUILTIN["ok"]
    trials = [
        Trial(
            case=Case(submission, Plan("launch", f"{one.point}:before:SIGKILL")),
            outcomes=frozenset({"wedged"}) if one.point.ordinal % 50 == 0 else frozenset(),
            detail="it failed" if one.point.ordinal % 50 == 0 else "",
        )
        for one in recorded
    ]
    made = Made(
        target=target(tmp_path, '"$@"'),
        options=CrashOptions(),
        trials=trials,
        facts=Points(recorded, [], []),
        executor=None,
    )
    found = visited(made, lambda one: one.phase)
    assert (len(found["map"]), found["map_left_out"]) == (MOST, MOST)
    kept = msgspec.convert(found["map"], list[Visited])
    assert sum(one.outcome["before"] == "wedged" for one in kept) == 2 * MOST // 50
    ordinals = [int(one.point.rpartition("#")[2]) for one in kept]
    assert ordinals == sorted(ordinals)
    assert len(msgspec.json.encode(found)) < 1_000_000
