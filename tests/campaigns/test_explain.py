"""A finding explains itself: which call made what is left, which one would have removed it, and in what function."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from made import LEAKCHECK, target

from injectors import parse
from leakcheck.campaigns import Result, explained
from leakcheck.campaigns.result import Finding, Residue
from leakcheck.report import Command
from leakcheck.trials.case import case_of, honest
from leakcheck.trials.explaining import Explainer
from leakcheck.trials.explanation import Explanation, Frame, Life, Step
from leakcheck.trials.outcome import Outcome

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

SCRIPT = """mkdir /run/box; touch /run/box/new; mv /run/box/new /run/box/state; mkfifo /run/kept-$$
"$@"; code=$?; rm -r /run/box; exit $code"""


def explain(tmp_path: Path, plan: str, script: str = SCRIPT, recover: str = "") -> Explanation:
    made = target(tmp_path, script, recover=recover)
    return Explainer(made, settle=0.1, stop=lambda: False).explain(case_of(parse(plan), made.adapter.shortest_wall))


@ROOT
def test_each_thing_left_has_the_call_that_made_it_and_the_one_that_removes_it_in_other_runs(tmp_path: Path) -> None:
    told = explain(
        tmp_path, "launch:0.4/execve(/usr/bin/mkfifo)#1:before:SIGKILL,quiesced", recover="rmdir /run/box || :"
    )
    lives = {one.label: one for one in told.lives}
    box, state = lives["dir /run/box"], lives["file /run/box/state"]
    assert (box.created, box.released) == ("launch:0.1/mkdir(/run/box)#1", "launch:0.6/rmdir(/run/box)#1")
    # It was renamed meanwhile.
    assert state.created == "launch:0.2/open(/run/box/new)#1"
    assert state.released == "launch:0.6/unlink(/run/box/state)#1"
    assert box.tried == ['rmdir("/run/box") = ENOTEMPTY'] and box.how == "the fault came between them"
    assert told.at is not None and told.at.call.startswith('execve("/usr/bin/mkfifo", ["mkfifo", "/run/kept-')
    assert told.recovery[0].exit == 0 and "not empty" in told.recovery[0].output


@ROOT
def test_what_no_call_removes_is_said_so_and_a_process_ends_by_itself(tmp_path: Path) -> None:
    # Without the fault, the shell ends its child.
    script = """mkfifo /run/kept-$$; sleep 60 & "$@"; code=$?; kill $!; wait; exit $code"""
    told = explain(tmp_path, "launch:0.3/execve(/usr/bin/timeout)#1:before:SIGKILL,quiesced", script)
    by_kind = {one.kind: one for one in told.lives}
    assert by_kind["file"].how == "no call of a run without the fault releases it"
    sleeper = by_kind["process"]
    assert (sleeper.created, sleeper.released) == ("launch:0/clone#2", "launch:0/kill(SIGTERM)#1")


@pytest.mark.slow  # The how-to shows the same command, which tests/docs runs.
@ROOT
def test_the_command_prints_a_bug_report(tmp_path: Path) -> None:
    made = target(tmp_path, SCRIPT)
    plan = "launch:0.2/execve(/usr/bin/touch)#1:before:SIGKILL"
    words = ["crash", "--target", str(made.path), "--explain", plan, "--format", "markdown"]
    done = subprocess.run([*LEAKCHECK, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    for part in (
        "# `made`: file left (leaked)",
        f"leakcheck crash --target {made.path} --plan '{plan}' --iterations 1",
        "dir /run/box: created at launch:0.1/mkdir(/run/box)#1, released at launch:0.6/rmdir(/run/box)#1; the fault",
        "## Why it matters",
    ):
        assert part in done.stdout
    for wrong in (["--plan", "launch:0/exit#1:before:SIGKILL"], ["--kill", "tree"]):
        refused = subprocess.run([*LEAKCHECK, *words, *wrong], capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2 and "--plan" in refused.stderr


def test_the_functions_named_in_short_are_the_programs_own() -> None:
    names = ["open64", "<std::fs::OpenOptions>::_open", "syscall.Syscall", "os.Mkdir", "box::make", "", "box::main"]
    libc = "/usr/lib/x86_64-linux-gnu/libc.so.6"
    stack = [Frame(program=libc if name == "open64" else "/box", address=1, function=name) for name in names]
    assert explained.functions(stack) == ["box::make", "box::main"]


EVIL = "`a``b` | <script>x</script> ::error::gone \x1b[31m"


def test_no_name_in_a_bug_report_ends_its_code_or_speaks_to_a_runner() -> None:
    told = Explanation(
        plan="launch:0/exit#1:before:SIGKILL",
        outcome="leaked",
        at=Step(point="launch:0/exit#1", call=f'mkdir("{EVIL}\n```")', result="0"),
        lives=[Life(kind="file", label=f"file {EVIL}", created="launch:0/open#1", how=f"{EVIL}\n# heading")],
        stack=[Frame(program=EVIL, address=1, function=f"f{EVIL}")],
        recovery=[Command(argv=[EVIL], exit=0, output=f"```\n::set-output name=x::{EVIL}")],
        notes=[EVIL],
    )
    left = Residue(kind="file", class_="orphaned", labels=[f"file {EVIL}"])
    finding = Finding(
        id="0", ending="launch", outcome="leaked", leaks=[left], trials=1, replay=EVIL, detail=EVIL, explanation=told
    )
    result = Result(
        campaign="crash",
        target=EVIL,
        version=EVIL,
        seed=0,
        wanted=1,
        trials=1,
        verdict="leaked",
        outcomes={},
        criteria=[],
        findings=[finding],
    )
    text = explained.markdown(result)
    fence = ""
    for line in text.splitlines():
        if fence:
            # Only as many backticks end a block.
            fence = "" if line == fence else fence
            assert fence == "" or fence not in line
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            assert "<script>" not in line or line.startswith("# ``` `a``b`")
        assert not line.startswith("::") and "\x1b" not in line and "::error::" not in line
    assert fence == ""
    assert Result.from_json(result.to_json()).findings[0].explanation == told
    assert json.loads(result.to_json())["findings"][0]["explanation"]["lives"][0]["released"] == ""
    assert not any("\x1b" in line.plain for line in explained.text(result))


@pytest.mark.parametrize(
    ("outcome", "class_", "says"),
    [
        ("leaked", "growing", "Nothing that the sandbox offers removes it: each such instant leaves more of it."),
        # It has one name: there is never more than one.
        ("leaked", "orphaned", "Nothing that the sandbox offers removes it."),
        ("not-reached", "", "nothing; the fault did not happen, so that nothing was tested"),
    ],
)
def test_a_bug_report_claims_no_more_than_was_seen(outcome: Outcome, class_: str, says: str) -> None:
    left = [Residue(kind="file", class_=class_, labels=["file /run/box"])] if class_ else []
    finding = Finding(id="0", ending="launch", outcome=outcome, leaks=left, trials=1, replay="", plan="launch:0/exit#1")
    result = Result(
        campaign="crash",
        target="made",
        version="",
        seed=0,
        wanted=1,
        trials=1,
        verdict="leaked",
        outcomes={},
        criteria=[],
        findings=[finding],
    )
    assert says in explained.markdown(result).splitlines()


def test_a_run_that_only_the_fault_ends_is_recorded_without_it_until_a_short_limit() -> None:
    kill = case_of(parse("launch:0/clone#1:before:SIGKILL,quiesced,sleeping"))
    assert (kill.submission.wall, honest(kill, 0.2).wall) == (60, 0.2)
    recovery = case_of(parse("recover:0/unlink(/run/x)#1:EACCES,sleeping"))
    assert honest(recovery, 0.2) == recovery.submission
    usual = case_of(parse("launch:0/clone#1:before:SIGKILL"))
    assert honest(usual, 0.2) == usual.submission


@ROOT
def test_the_calls_and_the_stack_at_a_fault_of_the_recovery_are_those_of_the_recovery(tmp_path: Path) -> None:
    script = """mkdir /run/box; "$@"; code=$?; rmdir /run/box; exit $code"""
    told = explain(tmp_path, "recover:0.1/rmdir(/run/box)#1:before:SIGKILL,sleeping", script, "rmdir /run/box; exit 0")
    assert "/usr/bin/rmdir" in {one.program for one in told.stack}
    assert told.at is not None and told.at.call == 'rmdir("/run/box")'
    assert [one.call.partition("(")[0] for one in told.last] == ["execve"]
