"""A timed kill that found something is traced back to a crash point, and the finding's replay line is that plan."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, WATCHES, target

from injectors import parse
from leakcheck.campaigns import Leaks, LeaksOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.targets import Target
from leakcheck.trials.executor import Ui

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

BOX = 'mkdir /var/lib/pin-box; "$@"; code=$?; rmdir /var/lib/pin-box; exit $code'
CLEANS_UP = (
    'trap "rm -f /var/lib/pin-made; exit 1" TERM; : > /var/lib/pin-made; "$@"; c=$?; rm /var/lib/pin-made; exit $c'
)


class Log(Ui):
    """Keeps what a campaign says that it does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def run(made: Target, plan: str, ui: Ui | None = None, **options: Any) -> Result:
    chosen = LeaksOptions(**{"iterations": 2, "plan": parse(plan), "settle": 0.1} | options)
    return run_campaign(Leaks(), made, chosen, ui)


@pytest.mark.parametrize(
    "plan",
    [
        "forced:freeze@300ms,sleeping",
        # The same search after another kill.
        pytest.param("forced:supervisor@payload+100ms,sleeping", marks=pytest.mark.slow),
        pytest.param("forced:tree@300ms,sleeping", marks=pytest.mark.slow),
    ],
)
def test_the_replay_line_of_a_timed_kill_is_a_crash_point_that_shows_the_same_each_time(
    plan: str, tmp_path: Path
) -> None:
    ui = Log()
    (finding,) = run(target(tmp_path, BOX), plan, ui).findings
    (one,) = finding.endings
    assert one.ending.startswith("forced:")
    assert (one.trials, one.tried, one.chance) == (2, 2, "")
    assert any("tracing a finding of 2 timed kills back to a crash point" in said for said in ui.said)
    told = finding.explanation
    assert told is not None and told.plan == one.plan
    (box,) = [life for life in told.lives if life.label == "dir /var/lib/pin-box"]
    assert (box.created, box.released) == (
        "launch:0.1/mkdir(/var/lib/pin-box)#1",
        "launch:0.3/rmdir(/var/lib/pin-box)#1",
    )
    words = shlex.split(finding.replay)
    assert words[:2] == ["leakcheck", "crash"]
    assert words[words.index("--plan") + 1] == one.plan
    words[words.index("--iterations") + 1] = "5"
    again = subprocess.run([*LEAKCHECK, *words[1:], "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    result = json.loads(again.stdout)
    assert result["trials"] == 5
    assert [(shown["id"], shown["trials"]) for shown in result["findings"]] == [(finding.id, 5)]


@pytest.mark.slow  # A search as by SIGKILL.
def test_a_kill_by_another_signal_is_traced_back_to_one_by_that_signal(tmp_path: Path) -> None:
    made = target(tmp_path, CLEANS_UP)
    (finding,) = run(made, "forced:supervisor@300ms,sighup,sleeping").findings
    assert ":SIGHUP,quiesced,sleeping" in finding.plan


def test_what_no_crash_point_near_shows_keeps_its_timed_line_with_a_note(tmp_path: Path) -> None:
    # Nothing marks the instant from which it leaves something: a clock does.
    made = target(
        tmp_path, '(sleep 0.5; : > /var/lib/pin-late) & "$@"; c=$?; kill $!; rm -f /var/lib/pin-late; exit $c'
    )
    (finding,) = run(made, "forced:freeze@1500ms,sleeping", iterations=1).findings
    assert finding.replay.startswith("leakcheck leaks ")
    assert "--plan forced:freeze@1500ms,sleeping" in finding.replay
    assert finding.chance.startswith("a timed kill, so a replay shows it by chance only")
    assert finding.chance.endswith("no kill at a crash point near it showed it every time")


def test_a_target_that_cannot_be_traced_keeps_its_timed_line(tmp_path: Path) -> None:
    if shutil.which("python3") is None:
        pytest.skip("no python3")
    ui = Log()
    made = target(tmp_path, f"{WATCHES}; {BOX}")
    (finding,) = run(made, "forced:freeze@600ms,sleeping", ui).findings
    assert finding.replay.startswith("leakcheck leaks ")
    assert finding.chance
    assert any("cannot be traced: " in said for said in ui.said), ui.said


def test_an_end_during_the_search_keeps_the_result(tmp_path: Path) -> None:
    ui = Log()
    options = LeaksOptions(iterations=2, plan=parse("forced:freeze@300ms,sleeping"), settle=0.1)
    result = run_campaign(Leaks(), target(tmp_path, BOX), options, ui, stop=lambda: "tracing" in str(ui.said))
    assert result.trials == 2
    assert result.findings[0].replay.startswith("leakcheck leaks ")
    assert result.findings[0].chance


def test_what_runs_without_a_kill_show_is_not_traced_back(tmp_path: Path) -> None:
    ui = Log()
    chosen = LeaksOptions(iterations=6, endings=["normal", "forced"], kills=["freeze"], settle=0.1)
    made = target(tmp_path, 'mktemp /var/lib/pin-XXXXXX >/dev/null; exec "$@"')
    result = run_campaign(Leaks(), made, chosen, ui)
    assert result.findings[0].replay.endswith("--plan normal --iterations 1 --settle 0.1")
    assert not any("back to a crash point" in said for said in ui.said)


def test_the_trials_of_the_search_do_not_count(tmp_path: Path) -> None:
    result = run(target(tmp_path, BOX), "forced:freeze@300ms,sleeping")
    assert (result.trials, result.wanted) == (2, 2)
    assert sum(result.outcomes.values()) == 2
