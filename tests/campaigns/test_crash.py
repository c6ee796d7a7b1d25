"""`leakcheck crash` visits every crash point, and finds the instants at which a target is known to leave something."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, WATCHES, target

from injectors import Plan, parse
from injectors.crash import Point
from leakcheck.campaigns import Crash, CrashOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.render import lines
from leakcheck.errors import TargetError, UsageError
from leakcheck.targets import Target, load
from leakcheck.trials.case import Case
from leakcheck.trials.crash_points import Points, Recorded, record
from leakcheck.trials.executor import Ui
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.runner import never
from leakcheck.trials.session import NEXT
from leakcheck.trials.trial import Trial

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

SETTLE = 0.1
MAKES = ': > /var/lib/crash-made; "$@"; code=$?; rm /var/lib/crash-made; exit $code'
# Without timeout(1), which leaves the process group of the supervisor: the recovery ends that group.
NOTES = 'echo $$ > /var/lib/crash-state; shift 2; mkdir /var/lib/crash-made; "$@"; code=$?; rmdir /var/lib/crash-made; '
NOTES += "rm /var/lib/crash-state; exit $code"
# io_uring_setup(2).
URING = "import ctypes; ctypes.CDLL(None).syscall(425, 1, bytes(120))"
ENDS = 'read pid < /var/lib/crash-state && [ "$pid" -gt 1 ] && kill -9 "-$pid"; '


def run(made: Target, plan: str = "", **options: Any) -> Result:
    if plan:
        options |= {"plan": parse(plan), "iterations": options.get("iterations", 1)}
    return run_campaign(Crash(), made, CrashOptions(settle=SETTLE, **options))


def plans(result: Result, outcome: str) -> set[str]:
    found = [one for finding in result.findings for one in finding.endings if one.outcome == outcome]
    return {one.plan.removesuffix(":SIGKILL") for one in found}


def status_in_a_file(made: Target) -> Target:
    """Have the target's status in the file ``$0/r``, in which 0 is OK."""
    status = '{ source = "meta", file = "{work}/r", status = "v", statuses = { 0 = "OK", 124 = "TLE" } }'
    made.path.write_text(made.path.read_text().replace("{ timeout = [124] }", status).replace("'sh',", "'{work}',"))
    return load(made.path)


def test_the_instants_between_making_and_removing_leak_and_no_others(tmp_path: Path) -> None:
    result = run(target(tmp_path, MAKES), schedule="immediate")
    assert result.verdict == "leaked"
    leaking = plans(result, "leaked") | plans(result, "wedged")
    made = "launch:0/open(/var/lib/crash-made)#1"
    assert {f"{made}:after", "launch:0/clone#1:before"} <= leaking
    assert f"{made}:before" not in leaking
    # The supervisor alone is killed: the process that removes the file does so all the same.
    assert not any("unlink" in plan for plan in leaking)
    assert "launch:0/exit#1:before" not in leaking
    assert result.points["hit"] == result.points["seen"]
    assert not result.points["not_reached"]
    assert [*result.endings] == ["setup", "execution", "timeout", "cleanup", "verdict"]
    assert all(bool(counts) != (phase == "timeout") for phase, counts in result.endings.items())
    assert "  timeout   no point was visited" in [text.plain for text in lines(result)]


def test_a_point_that_only_every_second_run_has_is_visited_and_its_line_replays_it(tmp_path: Path) -> None:
    odd = "read n < /var/lib/runs; echo $((n + 1)) > /var/lib/runs; [ $((n % 2)) = 1 ] || mkdir /var/lib/crash-odd; "
    odd += 'rm -rf /var/lib/crash-odd; "$@"; exit $?'
    made = target(tmp_path, odd, more='state = ["/var/lib/runs"]\n')
    result = run(made, schedule="immediate", phase="setup")
    at = "launch:0.1/mkdir(/var/lib/crash-odd)#1:after"
    assert at in plans(result, "leaked"), (result.points, result.criteria)
    again = run(made, f"{at}:SIGKILL")
    assert again.verdict == "leaked", again.to_json()
    never = run(made, "launch:0.1/mkdir(/var/lib/crash-never)#1:after:SIGKILL")
    assert never.outcomes == {"not-reached": 1}


@pytest.mark.parametrize(("gives_up", "outcome"), [("False", "clean"), ("not told", "false-status")])
def test_ok_after_the_kill_of_a_helper_is_right_only_if_the_payload_ran_to_its_end(
    tmp_path: Path, gives_up: str, outcome: str
) -> None:
    # The helper has handed over to a daemon already.
    script = """exec python3 -c 'import os, subprocess, sys
here, there = os.pipe()
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os.write(tell, b"x")
        os._exit(0)
    os.close(tell)
    told = os.read(told, 1)
    code = 0 if GIVES_UP else subprocess.run(sys.argv[1:]).returncode
    os.write(there, bytes([code & 255]))
    os._exit(0)
os.close(tell)
os.wait()
sys.exit(os.read(here, 1)[0])' "$@" """
    made = target(tmp_path, script.replace("GIVES_UP", gives_up))
    assert run(made, "launch:0.1/clone#1:after:SIGKILL,helper").outcomes == {outcome: 1}


def test_a_finding_is_replayed_by_its_line(tmp_path: Path) -> None:
    made = target(tmp_path, MAKES)
    result = run(made, schedule="quiesced", phase="execution")
    (finding,) = result.findings
    assert finding.endings[0].trials == finding.endings[0].tried == 3, "it was tried twice more"
    words = re.findall(r"'[^']*'|\S+", finding.replay)[1:]
    done = subprocess.run([*LEAKCHECK, *(word.strip("'") for word in words)], check=False, stderr=subprocess.DEVNULL)
    assert done.returncode == 1


@pytest.mark.slow  # Shown of refbox as well.
def test_a_recovery_that_removes_it_all_is_itself_killed_at_each_of_its_points(tmp_path: Path) -> None:
    made = target(tmp_path, NOTES, recover=f"{ENDS} rm -rf /var/lib/crash-made; rm -f /var/lib/crash-state")
    result = run(made, schedule="immediate", phase="recovery")
    assert result.verdict == "clean", result.findings
    assert not result.points["not_reached"]
    assert result.trials >= 6


def test_a_recovery_that_forgets_what_it_has_to_do_before_it_does_it_is_silent(tmp_path: Path) -> None:
    recover = f"[ -e /var/lib/crash-state ] || exit 0; {ENDS} rm /var/lib/crash-state; rm -rf /var/lib/crash-made"
    result = run(target(tmp_path, NOTES, recover=recover), phase="recovery", schedule="immediate")
    assert "silent" in {finding.outcome for finding in result.findings}
    assert all(one.plan.startswith("recover:") for finding in result.findings for one in finding.endings)


def test_each_of_several_commands_of_preparation_and_clean_up_is_killed(tmp_path: Path) -> None:
    def commands(*scripts: str) -> str:
        return ", ".join(f"['/bin/sh', '-c', '{script}; :']" for script in scripts)

    places = ["/var/lib/crash-a", "/var/lib/crash-b"]
    more = f"prepare = [{commands(*(f'mkdir {place}' for place in places))}]\n"
    more += f"finish = [{commands(*(f'rmdir {place}' for place in reversed(places)))}]"
    made = target(tmp_path, 'exec "$@"', more=more)
    result = run(made, schedule="immediate")
    assert not result.points["not_reached"]
    found = plans(result, "leaked")
    for number, place in enumerate(places):
        # The command whose child is at the point is killed; the child goes on.
        assert f"prepare:{number}.1/mkdir({place})#1:before" in found, found
        assert f"finish:{1 - number}.1/rmdir({place})#1:before" not in plans(result, "wedged")
    assert "prepare:0/clone#1:before" not in found
    assert {"finish:0/clone#1:before", "finish:1/clone#1:before", "finish:0/exit#1:before"} <= found
    assert "finish:1/exit#1:before" not in found


@pytest.mark.slow  # A sweep of every call.
def test_all_points_are_also_between_two_writes_and_changes_are_not(tmp_path: Path) -> None:
    # A file of one line is what it cannot read the next time.
    script = '[ ! -e /var/lib/crash-w ] || [ "$(wc -l < /var/lib/crash-w)" != 1 ] || exit 99; exec 3>/var/lib/crash-w; '
    script += 'echo a >&3; echo b >&3; exec 3>&-; rm /var/lib/crash-w; exec "$@"'
    made = target(tmp_path, script, more='box = "reused"')
    assert plans(run(made, schedule="immediate", phase="setup"), "wedged") == set()
    at = "launch:0/write(/var/lib/crash-w)"
    result = run(made, schedule="immediate", phase="setup", points="all")
    assert plans(result, "wedged") == {f"{at}#1:after", f"{at}#2:before"}
    (finding,) = [one for one in result.findings if one.outcome == "wedged"]
    assert run(made, finding.plan).outcomes == {"wedged": 1}, "a plan needs no option"


def test_preparation_is_killed_too(tmp_path: Path) -> None:
    prepare = "mkdir /var/lib/crash-prepared; rmdir /var/lib/crash-prepared"
    made = target(tmp_path, 'exec "$@"', prepare=prepare)
    result = run(made, "prepare:0.1/mkdir(/var/lib/crash-prepared)#1:after:SIGKILL")
    assert result.verdict == "leaked"
    assert "/var/lib/crash-prepared" in str(result.findings[0].leaks)


def test_what_each_run_replaces_does_not_grow_because_a_killed_runs_child_is_still_at_it(tmp_path: Path) -> None:
    busy = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"
    made = target(tmp_path, f'(rm -rf /var/lib/one-*; {busy}; mkdir /var/lib/one-$$); "$@"', more='box = "reused"')
    result = run(made, "launch:0/clone#1:after:SIGKILL")
    assert result.outcomes.keys() <= {"recovered", "bounded"}, result.findings


def test_what_a_killed_preparation_has_replaced_is_no_residue(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"', prepare="ln -sfn usr/bin /opt/crash-link; mkdir -p /opt/crash-kept; :")
    result = run(made, "prepare:0/exit#1:before:SIGKILL", iterations=2)
    assert (result.verdict, result.outcomes) == ("clean", {"clean": 2}), result.findings


def test_a_helper_that_is_killed_before_the_payload_ran_must_not_be_reported_as_ok(tmp_path: Path) -> None:
    # It ignores how its helper ended.
    made = target(tmp_path, 'mkdir /var/tmp/x && "$@"; exit 0', more="# lies")
    result = run(made, "launch:0.1/mkdir(/var/tmp/x)#1:before:SIGKILL,helper")
    assert "false-status" in result.outcomes


@pytest.mark.parametrize(
    "flags",
    ["quiesced,sleeping", "tree,sleeping", "freeze", "quiesced,tree"],
    ids=lambda flags: flags.replace(",", "-"),
)
def test_a_killed_run_that_reports_ok_has_a_false_status(flags: str, tmp_path: Path) -> None:
    # It reports OK before it knows.
    made = status_in_a_file(target(tmp_path, 'echo v:0 >"$0/r"; "$@"; echo v:$? >"$0/r"'))
    result = run(made, f"launch:0.1.1/execve(/bin/sh)#1:after:SIGKILL,{flags}")
    assert "status OK" in " ".join(finding.detail for finding in result.findings), result.outcomes
    assert "wrong statuses" in result.failed


def test_a_run_that_reports_ok_and_is_killed_then_has_no_false_status(tmp_path: Path) -> None:
    made = status_in_a_file(target(tmp_path, '"$@"; echo v:$? >"$0/r"; mkdir /var/lib/crash-x; rmdir /var/lib/crash-x'))
    result = run(made, "launch:0.2/mkdir(/var/lib/crash-x)#1:before:SIGKILL,quiesced,freeze")
    assert (result.verdict, result.outcomes) == ("clean", {"clean": 1}), result.findings


def test_a_next_submission_that_is_admitted_beside_a_survivor_is_wedged(tmp_path: Path) -> None:
    # Its lock is of its supervisor, with whose end it is free although the payload lives.
    made = target(tmp_path, 'exec 9>/var/lock/crash-box; flock -n 9 || exit 99; "$@" 9>&-; exit $?')
    (finding,) = run(made, "launch:0.2.1/execve(/bin/sh)#1:after:SIGKILL,quiesced,sleeping").findings
    assert finding.outcome == "wedged"
    assert "next submission: ran beside process " in finding.detail
    # With the payload's copy of the lock it is refused, which is wedged too.
    made = target(tmp_path, 'exec 9>/var/lock/crash-box; flock -n 9 || exit 99; "$@"; exit $?')
    (finding,) = run(made, "launch:0.2.1/execve(/bin/sh)#1:after:SIGKILL,quiesced,sleeping").findings
    assert finding.outcome == "wedged"
    assert "next submission: status" in finding.detail


def test_a_sweep_with_another_signal_finds_the_supervisor_that_does_not_handle_it(tmp_path: Path) -> None:
    script = (
        'trap "rm /var/lib/crash-made; exit 1" TERM; : > /var/lib/crash-made; "$@"; code=$?; rm /var/lib/crash-made'
    )
    result = run(target(tmp_path, f"{script}; exit $code"), schedule="quiesced", signal="SIGTERM", phase="execution")
    assert result.verdict == "clean", result.findings
    result = run(target(tmp_path, f"{script}; exit $code"), schedule="quiesced", signal="SIGHUP", phase="execution")
    assert result.verdict == "leaked"
    assert all(":SIGHUP" in one.plan for one in result.findings[0].endings)


def test_a_point_that_does_not_exist_is_not_reached_and_no_pass(tmp_path: Path) -> None:
    result = run(target(tmp_path, MAKES), "launch:0/mkdir(/nowhere)#1:before:SIGKILL")
    assert result.outcomes == {"not-reached": 1}
    assert result.verdict == "unknown"


def test_a_point_of_the_recovery_that_does_not_exist_is_not_reached_although_its_run_was_killed(tmp_path: Path) -> None:
    made = target(tmp_path, NOTES, recover=f"{ENDS} rm -rf /var/lib/crash-made; rm -f /var/lib/crash-state")
    result = run(made, "recover:0/mkdir(/nowhere)#1:before:SIGKILL,sleeping")
    assert not result.points["hit"]
    assert "recover:0/mkdir(/nowhere)#1:before:SIGKILL,sleeping" in result.points["not_reached"]
    assert result.verdict == "unknown"


def test_a_preparation_that_hangs_when_its_helper_is_killed_is_wedged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakcheck.trials.runner.GRACE", 2.0)
    # It waits for a file that its helper no longer makes.
    prepare = "mkdir /var/tmp/helped; while [ ! -d /var/tmp/helped ]; do :; done; rmdir /var/tmp/helped"
    made = target(tmp_path, 'exec "$@"', prepare=prepare)
    result = run(made, "prepare:0.1/mkdir(/var/tmp/helped)#1:before:SIGKILL,helper")
    assert result.outcomes == {"wedged": 1}


def test_a_payload_that_the_sandbox_starts_with_other_arguments_is_said_not_to_have_been_seen(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@" changed')
    result = run(made, schedule="immediate")
    assert any("no process executed the payload" in note for note in result.points["notes"])
    assert not result.endings["execution"]


def test_a_payload_that_is_the_command_itself_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    lines = ['name = "bare"', 'summary = "made by a test"', "launch = ['{program}']", 'probe = { none = "is none" }']
    path.write_text("\n".join(lines))
    recording = record(load(path), NEXT, 0, recovery=False, stop=never)
    assert not any(one.after == "execution" for one in recording.points)
    assert not recording.notes


def test_a_selection_without_a_point_is_refused_and_says_which_phases_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of its .* its phases with --ending normal: setup, execution, cleanup"):
        run(target(tmp_path, MAKES), phase="timeout")


def test_what_a_command_leaves_to_a_child_that_outlives_it_has_points(tmp_path: Path) -> None:
    script = ': > /var/lib/crash-late; "$@"; code=$?; '
    script += "(while [ -e /proc/$$ ]; do :; done; rm /var/lib/crash-late) & exit $code"
    result = run(target(tmp_path, script), schedule="immediate")
    killed = plans(result, "leaked")
    assert any("unlink(/var/lib/crash-late)#1:before" in plan for plan in killed), killed
    assert not any("unlink(/var/lib/crash-late)#1:after" in plan for plan in killed)
    assert not result.points["not_reached"]


def test_what_a_run_left_counts_though_its_plan_fired_only_in_another_trial(tmp_path: Path) -> None:
    made = target(tmp_path, MAKES)
    case = Case(NEXT, parse("launch:0/exit#1:before:SIGKILL"))
    unfired = [
        Trial(case=case, fired=False, outcomes=frozenset({one, "not-reached"})) for one in ("leaked", "not-reached")
    ]
    all_made: Made[CrashOptions, Trial] = Made(
        target=made,
        options=CrashOptions(),
        trials=[*unfired, Trial(case=case)],
        facts=Points([], [], []),
        executor=Nobody(),
    )
    Crash().finish(all_made, Ui())
    assert [trial.outcome for trial in all_made.trials] == ["leaked", "clean"]


class Nobody:
    """An executor that makes no trial, and has been asked to stop."""

    def stop(self) -> bool:
        return True

    def run(self, cases: Any) -> Any:
        del cases
        return iter(())


def test_shards_visit_every_point_once(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    whole = run(made, schedule="immediate")
    parts = [run(made, schedule="immediate", shard=f"{number}/2") for number in (1, 2)]
    assert sum(part.trials for part in parts) == whole.trials


def test_a_supervisor_with_io_uring_is_swept_and_told_to_be_seen_in_part(tmp_path: Path) -> None:
    made = target(tmp_path, f'/usr/bin/python3 -SIc "{URING}"; exec "$@"')
    result = run(made, schedule="immediate", phase="execution")
    assert result.verdict == "clean", result.findings
    assert any("it uses io_uring: what it does through it has no points" in note for note in result.points["notes"])


def test_a_target_that_traces_is_killed_before_its_calls_and_a_finding_is_replayed(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    made = target(tmp_path, f"strace -o /dev/null true; {MAKES}", prepare="true", name="tracer")
    result = run(made, schedule="immediate")
    leaking = plans(result, "leaked") | plans(result, "wedged")
    launched = {plan for plan in leaking if plan.startswith("launch:")}
    # The instant after it made the file is that before its next call.
    assert any("clone" in plan for plan in launched), leaking
    assert all(":before" in plan and plan.endswith(",notified") for plan in launched)
    assert not any("open(/var/lib/crash-made)" in plan for plan in launched)
    assert not result.points["not_reached"]
    assert any(note.startswith("launch: it uses ptrace itself") for note in result.points["notes"])

    assert run(made, min(launched)).verdict != "clean"


def test_a_plan_without_the_flag_is_refused_for_a_target_that_traces(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    made = target(tmp_path, f"strace -o /dev/null true; {MAKES}")
    with pytest.raises(UsageError, match=r"made uses ptrace itself, .* with the flag 'notified'"):
        run(made, "launch:0/open(/var/lib/crash-made)#1:after:SIGKILL")


def test_a_target_that_can_be_neither_traced_nor_notified_is_told_what_to_do(tmp_path: Path) -> None:
    if shutil.which("python3") is None:
        pytest.skip("no python3")
    with pytest.raises(TargetError, match=r"cannot be traced: .*watches calls.*leakcheck leaks --target made"):
        run(target(tmp_path, f'{WATCHES}; exec "$@"'))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"host": True}, "--host: crash points exist in arenas only"),
        ({"phase": "middle"}, "--phase 'middle': one of setup"),
        ({"kill": "freeze", "signal": "SIGTERM"}, "--kill freeze --signal SIGTERM: stopped processes act on SIGKILL"),
        ({"shard": "3/2"}, "--shard '3/2': give I/N"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(wrong)):
        run(target(tmp_path, MAKES), **options)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bwrap")
def test_bwrap_leaks_before_its_inner_process_has_armed_the_parent_death_signal() -> None:
    bwrap = load("bwrap")
    for at, verdict in (("0/prctl(pdeathsig)#1:before", "leaked"), ("0.1/mount(/)#1:before", "clean")):
        result = run(bwrap, f"launch:{at}:SIGKILL,quiesced", iterations=3)
        assert result.verdict == verdict, result.findings


def test_refbox_leaves_nothing_at_a_share_of_its_points_and_of_its_recovery() -> None:
    for schedule in ("immediate", "quiesced"):
        result = run(load("refbox"), schedule=schedule, shard="2/6")
        assert result.verdict == "clean", result.findings


# Of those that leave something, and the share of their points that is swept for it.
# refbox, sandlock, subprocess and unshare have no such point.
LEAKY = {"bwrap": "1/1", "proot": "1/1", "runsc": "1/4", "hakoniwa": "1/8", "nsjail": "1/8", "crun": "1/16"}
LEAKY |= {"firejail": "1/16", "runc": "1/16", "youki": "1/16", "lxc": "1/30", "nspawn": "1/30", "runc-new": "1/30"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAKY)
def test_five_findings_are_shown_by_19_of_20_replays_each(name: str) -> None:
    made = load(name)
    if (state := made.availability()).state != "ready":
        pytest.skip(f"{name}: {state.reason}")
    result = run(made, schedule="quiesced", shard=LEAKY[name])
    seen = [one for finding in result.findings for one in finding.endings if one.outcome in FAILING]
    assert seen
    for one in seen[:: max(1, len(seen) // 5)][:5]:
        again = run(made, one.plan, iterations=20)
        assert sum(again.outcomes.get(outcome, 0) for outcome in FAILING) >= 19, one.plan


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bwrap", "refbox", "runc"])
def test_two_recordings_have_the_same_points(name: str) -> None:
    if name != "refbox" and shutil.which(name) is None:
        pytest.skip(f"no {name}")
    facts = Crash().prepare(load(name), CrashOptions(), Ui(), never)
    assert len(facts.unsteady) <= (name == "runc")
    assert len(facts.points) > 50


def test_a_part_of_a_sweep_is_the_first_of_one_order_whatever_limits_it() -> None:
    campaign = Crash()
    points = [Recorded(Point("launch", "0", "mkdir", f"/{number}", 1), "setup", "setup") for number in range(9)]

    def drawn(**options: Any) -> list[Plan]:
        return [*campaign.plans(CrashOptions(**options), points)]

    every = drawn(within=60)
    assert sorted(map(str, every)) == sorted(map(str, drawn())) and every != drawn()
    assert drawn(iterations=7) == every[:7]
    assert drawn(iterations=7, seed=1) != every[:7]
    assert {*drawn(shard="2/3", iterations=4)} < {*drawn(shard="2/3")}


def test_shards_of_recordings_that_differ_by_a_point_miss_none_of_the_others() -> None:
    campaign = Crash()
    points = [Recorded(Point("launch", "0", "mkdir", f"/{number}", 1), "setup", "setup") for number in range(9)]
    more = [points[0], Recorded(Point("launch", "0", "mkdir", "/now-and-then", 1), "setup", "setup"), *points[1:]]
    first, second = (
        campaign.shard(CrashOptions(shard=shard), found) for shard, found in (("1/2", points), ("2/2", more))
    )
    assert first and second
    assert {*campaign.shard(CrashOptions(), points)} <= {*first, *second}


def test_no_trial_starts_after_the_time_that_a_sweep_has_and_the_result_says_what_was_tried(tmp_path: Path) -> None:
    result = run(target(tmp_path, MAKES), within=0.001, jobs=1, phase="setup")
    assert 1 <= result.points["tried"] < result.points["plans"]
