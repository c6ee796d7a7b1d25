"""As many trials run at a time as asked for; those that wait for teardown do not count, and come first afterwards."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from made import target

from injectors import NORMAL
from leakcheck.campaigns.leaks import case_of
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Ui
from leakcheck.trials.isolated import Isolated
from leakcheck.trials.runner import never
from leakcheck.trials.trial import Trial
from leakcheck.trials.turns import Turn, Turns

CASE = case_of(NORMAL)


def executor(tmp_path: Path, jobs: int) -> Isolated:
    return Isolated(target(tmp_path, '"$@"'), Ui(), never, jobs=jobs, live=False, settle=0.1)


def test_no_more_trials_run_than_asked_for_unless_one_lends_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, met = threading.Lock(), threading.Barrier(3)
    running, most = 0, 0

    def run(*_: object, turn: Turn, **__: Any) -> Trial:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        turn.lend()
        # Three at once, though only one has a turn.
        met.wait(30)
        turn.take_back()
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return Trial(case=CASE)

    monkeypatch.setattr("leakcheck.trials.isolated.run_trial", run)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    made = list(executor(tmp_path, 0).run(lambda: iter([CASE] * 6)))
    assert len(made) == 6
    assert most == 1


def test_a_trial_that_wants_its_turn_back_gets_it_before_a_new_one() -> None:
    turns = Turns(1, lambda: None)
    assert turns.take()
    assert not turns.take()
    turn = Turn(turns)
    turn.lend()
    turn.lend()
    assert turns.take()
    back = threading.Thread(target=turn.take_back)
    back.start()
    while turns.returning == 0:
        threading.Event().wait(0.001)
    turns.give()
    back.join(30)
    assert not turns.take()
    turns.give()
    assert turns.take()


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_a_turn_is_lent_only_by_a_trial_that_waits_for_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[str] = []
    take_back = Turn.take_back

    def counted(turn: Turn) -> None:
        lent.extend(["lent"] * turn.is_lent)
        take_back(turn)

    monkeypatch.setattr(Turn, "take_back", counted)
    for script, waits in (('"$@"', False), (': >/run/of-$$; "$@"', True)):
        lent.clear()
        made = Isolated(target(tmp_path, script), Ui(), never, jobs=1, live=False, settle=0.2)
        trials = list(made.run(lambda: iter([Case(CASE.submission)])))
        assert made.failure is None
        assert [trial.outcome for trial in trials] == (["leaked"] if waits else ["clean"])
        assert bool(lent) == waits
