"""What a campaign had found when it was cut off counts when it goes on, whatever it was about to do."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from made import target

from injectors import Plan
from leakcheck import _native
from leakcheck.campaigns import Crash, CrashOptions, Leaks, LeaksOptions, Stress, StressOptions, run
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.engine import judged
from leakcheck.campaigns.further import extend
from leakcheck.campaigns.machine import Machine
from leakcheck.campaigns.stress_rounds import Rounds, seen_so_far
from leakcheck.evidence import Store
from leakcheck.report import Leak
from leakcheck.submissions import BUILTIN
from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.case import Case
from leakcheck.trials.crash_points import Points
from leakcheck.trials.record import Record
from leakcheck.trials.trial import Trial

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
CLEAN = 'exec "$@"'


def other_settings(text: str, *, boot: str = "") -> str:
    """Return a snapshot as if one setting had been another one, or of another boot."""
    settings = json.loads(text)
    one = next(one for one in settings["sysctls"] if one["path"].startswith("/proc/sys/kernel/"))
    one["value"] += "7"
    settings["boot_id"] = boot or settings["boot_id"]
    return json.dumps(settings)


def test_a_setting_that_changed_before_the_campaign_was_cut_off_is_not_forgotten() -> None:
    text = other_settings(_native.snapshot(kinds="sysctl").to_json())
    machine = Machine(live=False, settings=text)
    assert json.loads(machine.settings()) == json.loads(text)
    ((criterion, verdict),) = machine.judge()
    assert (criterion.passed, criterion.measured, verdict) == (False, 1, "leaked")
    assert machine.untied[0].kind == "sysctl"
    # After a restart, settings are not comparable; what was known to change is not lost.
    restarted = Machine(live=False, settings=other_settings(text, boot="0" * 8), changed=machine.changed())
    ((criterion, _),) = restarted.judge()
    assert (criterion.passed, criterion.measured) == (False, 1)
    ((criterion, _),) = Machine(live=False, settings=other_settings(text, boot="0" * 8)).judge()
    assert criterion.passed


@as_root
@pytest.mark.parametrize("phase", ["prepare", "trials"])
def test_a_campaign_that_changed_a_setting_and_was_killed_is_not_clean_when_it_goes_on(
    tmp_path: Path, phase: str
) -> None:
    made, store = target(tmp_path, CLEAN), tmp_path / "s.db"
    options = LeaksOptions(iterations=2, endings=("normal",), settle=0.1)
    with Store(store, create=True) as opened, opened.record(Leaks(), made, options, resume=False) as first:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        keep = first.begin
        first.add = killed  # type: ignore[method-assign]
        first.begin = killed if phase == "prepare" else keep  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run(Leaks(), made, options, recording=first)
        text = opened.text(first.run, "settings")
        opened.database.change(("UPDATE runs SET settings = ?", [other_settings(text)]))
    with Store(store) as opened, opened.record(Leaks(), made, options, resume=True) as second:
        assert second.run.id == first.run.id
        result = run(Leaks(), made, options, recording=second)
    assert (result.verdict, result.failed) == ("leaked", ["settings of the machine that changed"])


def submission(number: int, *, in_round: int, right: bool = True) -> Record:
    return Record(
        id=number,
        spec="python/hello",
        expect="OK",
        status="OK" if right else "RE",
        right=right,
        wall_ms=10,
        queued_ms=0,
        ended_s=1,
        box=0,
        round=in_round,
    )


def test_submissions_of_a_round_that_nobody_saw_are_not_of_a_later_round_of_that_number(tmp_path: Path) -> None:
    made, options = target(tmp_path, CLEAN), StressOptions(submissions=4)
    with Store(tmp_path / "s.db", create=True) as opened:
        with opened.record(Stress(), made, options, resume=False) as first:
            first.begin(4, [])
            for number, in_round in enumerate((1, 1, 2, 2)):
                first.add(submission(number, in_round=in_round), lambda: b"{}")
        opened.database.close()
    with Store(tmp_path / "s.db") as opened, opened.record(Stress(), made, options, resume=True) as second:
        assert [one.id for one in second.trials] == [0, 1, 2, 3]
        second.begin(4, second.trials[:2])
        assert [one.id for one in opened.trials(second.run)] == [0, 1]


def test_what_a_wrong_submission_left_in_a_round_that_nobody_saw_is_not_known(tmp_path: Path) -> None:
    facts: Any = SimpleNamespace(before=Rounds(observed={1}))
    executor: Any = SimpleNamespace(done=set())
    made: Made[Any, Record] = Made(target(tmp_path, CLEAN), StressOptions(), [], facts, executor)
    seen = [submission(0, in_round=1), submission(1, in_round=1, right=False)]
    assert len(Stress().still_valid(made, seen)) == 2
    assert facts.before.gaps == {}
    unseen = [submission(2, in_round=2), submission(3, in_round=2, right=False)]
    assert [one.id for one in Stress().still_valid(made, [*seen, *unseen])] == [0, 1, 3]
    assert "what 1 of them with a wrong status left" in facts.before.gaps["submissions"]


def test_no_round_has_the_number_of_the_observation_at_the_end_of_what_was_interrupted(tmp_path: Path) -> None:
    arena = SimpleNamespace(observed=[1, 2, 3], judged=list, settled_ms={}, gaps={}, untied={})
    executor: Any = SimpleNamespace(
        arenas=[arena], rounds=2, first_run=[], sick=[], cleanup_failures=[], stalls=[], deepest=0
    )
    facts: Any = SimpleNamespace(before=Rounds())
    made: Made[Any, Record] = Made(target(tmp_path, CLEAN), StressOptions(), [], facts, executor)
    # Otherwise the next round is the third, and was observed before it began.
    assert seen_so_far(made).begun == 3


class Interrupted:
    """An executor that an interrupt ends after its first trial."""

    took = 1.0

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[Trial]:
        yield Trial(case=next(cases()))


def case(number: int) -> Case:
    return Case(BUILTIN["ok"], Plan("launch", f"0/mkdir(/a)#{number}:before:SIGKILL"))


def test_a_sweep_that_is_interrupted_at_its_last_points_is_not_complete(tmp_path: Path) -> None:
    recorded: list[Trial] = []
    made: Made[Any, Trial] = Made(
        target(tmp_path, CLEAN),
        CrashOptions(),
        [Trial(case=case(1))],
        Points([], [], []),
        Interrupted(),
        wanted=1,
        took=1,
        record=recorded.append,
    )
    assert len(extend(made, [case(2), case(3)])) == 1
    # They are in the store before the campaign ends.
    assert [one.case for one in recorded] == [case(2)]
    assert (len(made.trials), made.wanted) == (2, 3)
    result = judged(Crash(), made, "", Machine(live=False), interrupted=True)
    assert (result.interrupted, result.complete) == (True, False)


def test_a_campaign_that_goes_on_wants_all_that_is_left_whatever_it_has(tmp_path: Path) -> None:
    facts: Any = SimpleNamespace(run_ms=10.0)
    options = LeaksOptions(iterations=4, endings=("normal",))
    made: Made[Any, Trial] = Made(target(tmp_path, CLEAN), options, [Trial(case=case(1))], facts, None, wanted=4)
    # A trial that is in no plan any more replaces none.
    assert Leaks().wanted_in_all(made) == 5
    normal = next(Leaks().cases(made.target, options, facts))
    made = msgspec.structs.replace(made, trials=[Trial(case=normal)])
    assert Leaks().wanted_in_all(made) == 4


def test_what_an_observation_has_shown_before_its_end_is_not_kept() -> None:
    # Its submissions are made again, and leave the same once more.
    leak = msgspec.convert({"kind": "file", "class": "orphaned", "label": "file /var/lib/x"}, type=Leak)
    both = [SharedRemnant(leak, number, [number], "round") for number in (1, 2)]
    arena = SimpleNamespace(observed=[1], judged=lambda: both, settled_ms={}, gaps={}, untied={})
    executor = SimpleNamespace(
        arenas=[arena], rounds=2, first_run=[], sick=[], cleanup_failures=[], stalls=[], deepest=0
    )
    made: Any = SimpleNamespace(facts=SimpleNamespace(before=Rounds()), executor=executor, trials=[])
    assert [one.round for one in seen_so_far(made).left] == [1]
    arena.observed.append(2)
    assert [one.round for one in seen_so_far(made).left] == [1, 2]
