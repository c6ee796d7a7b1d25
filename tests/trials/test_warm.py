"""The warm state of a target: a trial that begins in it comes to the same as one with a warm-up run of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from made import target

from injectors import Plan, parse
from leakcheck.campaigns.leaks import case_of
from leakcheck.conformance import tried
from leakcheck.targets import Target, builtin
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Ui
from leakcheck.trials.isolated import Isolated
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.runner import never
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import fixed, similar
from leakcheck.trials.trial import Trial, run_trial
from leakcheck.trials.warm import WarmState, warm_state

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

# What a kill leaves depends on the instant: here the payload sleeps.
PLANS = [parse(plan) for plan in ("normal", "timeout", "crash:signal", "forced:supervisor@payload+100ms,sleeping")]
QUICK = {"bwrap", "refbox", "runc", "crun"}
# One cgroup in any hierarchy that limits processes.
GROUP = "g=/sys/fs/cgroup/pids; [ -d $g ] || g=/sys/fs/cgroup; g=$g/kept"


def warm(made: Target) -> WarmState:
    state, why = warm_state(made, stop=never)
    assert state is not None, why
    return state


def trial(made: Target, plan: Plan, state: WarmState | None) -> Trial:
    case = case_of(plan, made.adapter.shortest_wall)
    return run_trial(made, case, 0, live=False, settle=0.25, warm=state)


def result(trial: Trial) -> tuple[object, ...]:
    return trial.outcomes, trial.gaps, fixed(trial.detail), "warm-up" in trial.timing_ms


def assert_same(one: Trial, other: Trial) -> None:
    assert result(one) == result(other), one.case.plan
    for left, right in ((one.left, other.left), (other.left, one.left)):
        assert not [each for each in left if not any(same(each, here) for here in right)], (one.left, other.left)


def same(one: Remnant, other: Remnant) -> bool:
    # Whether a repeated kill, which comes a little earlier or later, leaves more is chance.
    same_class = one.class_ == other.class_ or {one.class_, other.class_} == {"orphaned", "growing"}
    same_fate = (one.kind, one.by, one.stage) == (other.kind, other.by, other.stage)
    return same_class and same_fate and similar(one.place, other.place)


@pytest.mark.parametrize(
    "made",
    [pytest.param(one, marks=[] if one.name in QUICK else [pytest.mark.slow]) for one in builtin()],
    ids=lambda target: target.name,
)
def test_trials_of_each_target_come_to_the_same_in_its_warm_state_as_after_its_own_warm_up(made: Target) -> None:
    if (state := tried(made)).state != "ready":
        pytest.skip(f"{state.state}: {state.reason}; {state.hint}")
    common, why = warm_state(made, stop=never)
    if common is None:
        pytest.skip(f"each trial makes its own: {why}")
    for plan in PLANS:
        assert_same(trial(made, plan, common), trial(made, plan, None))


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("""mkdir -p /run/a/b; echo once >/run/a/b/log; [ -e /run/a/link ] || ln -s b /run/a/link; "$@" """, "clean"),
        # The first run's file is not the arena's own, whose change would be damage.
        ("""echo more >>/run/of-made; chmod 600 /run/of-made; "$@" """, "clean"),
        ("""rm -f /opt/log; echo new >/opt/log; "$@" """, "bounded"),
        (f"""{GROUP}; mkdir -p $g; "$@" """, "clean"),
        (f"""{GROUP}; rmdir $g 2>/dev/null; mkdir $g; "$@" """, "bounded"),
        # Without the first run's process ids, a second one would use its names again.
        (""": >/run/of-$$; "$@" """, "leaked"),
    ],
)
def test_what_later_runs_do_with_what_the_first_one_left_is_judged_as_ever(
    tmp_path: Path, script: str, outcome: str
) -> None:
    made = target(tmp_path, script)
    cold, common = (trial(made, PLANS[0], state) for state in (None, warm(made)))
    assert_same(common, cold)
    assert common.outcome == outcome


def test_files_and_cgroups_are_made_again_with_their_owners_modes_times_and_settings(tmp_path: Path) -> None:
    made = target(
        tmp_path,
        f"""mkdir -p /opt/kept; echo text >/opt/kept/file; chmod 2750 /opt/kept; chown 12:34 /opt/kept/file
        touch -d @86400 /opt/kept /opt/kept/file; {GROUP}; mkdir -p $g; echo 77 >$g/pids.max; "$@" """,
    )
    state = warm(made)
    assert [group.settings for group in state.groups] == [{"pids.max": "77\n"}]
    with ArenaHost(made, 0, last_pid=state.last_pid) as host:
        session = Session(made, host)
        assert state.restore(session) == ""
        shown = session.output_of(
            ["/bin/sh", "-c", f"{GROUP}; cd /opt/kept; stat -c '%n %a %u %g %Y' . file; cat file $g/pids.max; echo $$"]
        )
    *lines, pid = shown.split("\n")[:-1]
    assert lines == [". 2750 0 0 86400", "file 644 12 34 86400", "text", "77"]
    assert int(pid) > state.last_pid > 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 300 >/dev/null 2>&1 &", "process"),
        ("mount -t tmpfs none /mnt", "mount tmpfs"),
        ("ipcmk -M 16 >/dev/null", "shared memory"),
        ("echo 1 >/proc/sys/net/ipv4/ip_forward", "settings of the network"),
        ("ip address add 10.9.8.7/32 dev lo", "settings of the network"),
        ("hostname other", "settings of the network"),
        ("echo x >/opt/a; ln -f /opt/a /opt/b", "no small file"),
        ("mkfifo /opt/pipe 2>/dev/null", "no small file"),
        ("head -c 2000000 /dev/zero >/opt/large", "no small file"),
        ("chmod 700 /etc", "changed dir /etc"),
        ("rm -f /etc/hostname", "deleted file /etc/hostname"),
        ("exit 3", "status RE"),
        # It knows its file by when it was made.
        ("cd /run; [ -e f ] || (: >f; stat -c %w f >born); stat -c %w f | cmp - born || exit 3", "something else"),
    ],
)
def test_what_more_than_files_and_cgroups_leaves_has_its_own_warm_up_in_each_trial(
    tmp_path: Path, script: str, why: str
) -> None:
    state, told = warm_state(target(tmp_path, f'{script}\n"$@"'), stop=never)
    assert state is None
    assert why in told


class Heard(Ui):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("script", "logged"),
    [("", []), ("sleep 9 &", ["each trial makes a warm-up run, which takes longer: it leaves more than files"])],
)
def test_a_campaign_of_many_trials_makes_the_warm_state_once_or_tells_why_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, logged: list[str]
) -> None:
    made, heard = target(tmp_path, f'{script}\n"$@"'), Heard()
    states: list[WarmState | None] = []

    def run(*_: object, warm: WarmState | None, **__: object) -> Trial:
        states.append(warm)
        return Trial(case=case_of(PLANS[0]))

    monkeypatch.setattr("leakcheck.trials.isolated.run_trial", run)
    executor = Isolated(made, heard, never, jobs=2, live=False, settle=0.05)
    for count in (2, 30, 30):
        assert len(list(executor.run(lambda count=count: iter([case_of(PLANS[0])] * count)))) == count  # type: ignore[misc]
    assert [line.partition(" and cgroups")[0] for line in heard.lines] == logged
    few, many = states[:11], states[11:]
    assert few == [None] * 11
    assert {one is not None for one in many} == {not logged}
    assert len({id(one) for one in many}) == 1


def test_no_case_is_asked_for_before_its_trial_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakcheck.trials.isolated.run_trial", lambda *_, **__: Trial(case=case_of(PLANS[0])))
    monkeypatch.setattr("leakcheck.trials.isolated.warm_state", lambda *_, **__: (None, ""))
    made = 0

    def cases() -> Iterator[Case]:
        for number in range(50):
            # Campaigns stop once they have found enough: more than run and wait at a time are too many.
            assert number - made <= 16
            yield case_of(PLANS[0])

    for _ in Isolated(target(tmp_path, '"$@"'), Ui(), never, jobs=2, live=False, settle=0).run(cases):
        made += 1
    assert made == 50
