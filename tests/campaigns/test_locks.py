"""`leakcheck locks`: who ran beside whom is seen by the payloads' processes, whatever the target says."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, target

from injectors import injector_for, parse
from injectors.locks import kill_plan, lock_plan
from leakcheck.campaigns import Locks, LocksOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.conformance import check
from leakcheck.errors import NotApplicableError, TargetError, UsageError
from leakcheck.targets import Target, load
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.contender_program import HOLDER
from leakcheck.trials.contest import Contest
from leakcheck.trials.executor import Ui
from leakcheck.trials.lock_files import record_locks
from leakcheck.trials.runner import never
from leakcheck.trials.session import Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

HOME = "/var/lib/locks-test"
LOCK = f"{HOME}/box.lock"
DIES = "setpriv --pdeathsig KILL unshare --pid --fork --kill-child"
TABLE = f'state = ["{HOME}"]\nlocks = {{ files = ["{LOCK}"], busy = [9], within = 2 }}\n'
# flock(1) holds the lock itself, and the payload does not inherit it.
FLOCK = f'shift 2; mkdir -p {HOME}; exec flock -n -o -E 9 {LOCK} {DIES} "$@"'
# Whoever has written its pid has the box, unless that process is dead.
PID = f"""shift 2; mkdir -p {HOME}
[ -s {LOCK} ] && kill -0 "$(cat {LOCK})" 2>/dev/null && exit 9
echo $$ > {LOCK}; {DIES} "$@"; code=$?; rm -f {LOCK}; exit $code"""


def made(tmp_path: Path, launch: str, more: str = TABLE, **options: str) -> Target:
    return target(tmp_path, launch, more=more, **options)


def run(of: Target, plan: str = "", **options: Any) -> Result:
    if plan:
        options = {"plan": parse(plan), "iterations": 1, **options}
    return run_campaign(Locks(), of, LocksOptions(settle=0.1, **options))


def outcomes(result: Result) -> set[str]:
    return {finding.outcome for finding in result.findings}


def shown(result: Result) -> str:
    return "; ".join(f"{one.outcome} {one.plan}: {one.detail}" for one in result.findings)


@pytest.mark.parametrize("plan", ["lock:contend=4", "lock:kill-holder", "lock:stop-holder", "lock:stop-kill-holder"])
def test_a_lock_that_excludes_and_goes_with_its_holder_passes(tmp_path: Path, plan: str) -> None:
    result = run(made(tmp_path, FLOCK), plan)
    assert result.verdict == "clean", shown(result)
    measured = {one.name: one.measured for one in result.criteria}
    assert measured["contenders admitted"] >= 1
    assert measured["contenders refused"] >= 2


def test_two_payloads_in_one_box_are_a_split_brain_though_each_has_its_status(tmp_path: Path) -> None:
    result = run(made(tmp_path, f'shift 2; mkdir -p {HOME}; touch {LOCK}; exec "$@"'), "lock:contend=3")
    assert outcomes(result) == {"split-brain"}, shown(result)
    (finding,) = result.findings
    assert "the payloads of contenders 0 and 1 ran in one box at the same time" in finding.detail
    assert "--plan lock:contend=3" in finding.replay
    assert result.verdict == "leaked"
    assert result.failed == ["contests with two payloads in one box at once"]


def test_a_payload_that_is_killed_as_soon_as_it_is_executed_was_in_the_box_all_the_same(tmp_path: Path) -> None:
    # It has no room for its own program, says nothing, and the target calls the run refused.
    flash = f"""shift 2; mkdir -p {HOME}; if [ -e {LOCK} ]; then
prlimit --as=65536 "$@" > /dev/null 2>&1; exit 9; fi
touch {LOCK}; "$@"; code=$?; rm {LOCK}; exit $code"""
    result = run(made(tmp_path, flash), "lock:stop-holder", iterations=2)
    assert result.endings == {"stop-holder": {"split-brain": 2}}, shown(result)


# What a sandbox does with the program of a run that it calls refused.
QUICKLY = "prlimit --as=65536 {0} > /dev/null 2>&1"
ASIDE = {
    "link": f"ln $1 /usr/share/x$$; {QUICKLY.format('/usr/share/x$$')}; rm /usr/share/x$$",
    "rename": f"mv $1 $1.x; {QUICKLY.format('$1.x')}; mv $1.x $1",
    "deleted": f"exec 5< $1; cp -a $1 /tmp/k$$; rm $1; {QUICKLY.format('/proc/self/fd/5')}; mv /tmp/k$$ $1",
    "overlay": """unshare -m sh -c 'd=/tmp/o$$; mkdir $d; mount -t tmpfs x $d; mkdir $d/u $d/w $d/m
mount -t overlay o -o lowerdir=/usr/share,upperdir=$d/u,workdir=$d/w $d/m; p=$d/m${{1#/usr/share}}
(prlimit --as=65536 $p) > /dev/null 2>&1; umount $d/m $d; rmdir $d' sh $1""",
    "copy": f"cp $1 /tmp/x$$; {QUICKLY.format('/tmp/x$$')}; rm /tmp/x$$",
    "interpreter": "prlimit --cpu=0 sh $1 > /dev/null 2>&1",
    "memory": """python3 -c 'import os, sys; new = os.memfd_create("x", 0)
os.write(new, open(sys.argv[1], "rb").read()); os.execv("/proc/self/fd/%d" % new, ["x"])' $1 & sleep 0.2; kill -9 $!""",
}


@pytest.mark.parametrize("how", ASIDE)
def test_a_payload_under_another_name_is_seen_and_one_that_was_copied_is_never_a_pass(tmp_path: Path, how: str) -> None:
    aside = f"""shift 2; mkdir -p {HOME}; if [ -e {LOCK} ]; then
{ASIDE[how]}; exit 9; fi; touch {LOCK}; "$@"; code=$?; rm {LOCK}; exit $code"""
    result = run(made(tmp_path, aside), "lock:stop-holder")
    if how in ("link", "rename", "deleted", "overlay"):
        assert "split-brain" in outcomes(result), shown(result)
    elif "split-brain" not in outcomes(result):
        assert "was opened by a process that did not execute it" in shown(result)
        assert result.verdict == "unknown"


@pytest.mark.parametrize("copies", [True, False])
def test_a_copy_of_the_first_program_that_was_made_in_prepare_is_never_a_pass(tmp_path: Path, copies: bool) -> None:
    # It runs the copy of the first one, has it killed at once, and calls the run refused.
    copy = f"{HOME}/copy"
    runs = f"case $1 in */0) {QUICKLY.format(copy)}; exit 9;; esac"
    launch = FLOCK.replace("exec flock", f"{runs}; exec flock")
    first = HOLDER.program[0]
    prepare = f"mkdir -p {HOME}; [ ! -e {first} ] || {'cp' if copies else ':'} {first} {copy}"
    result = run(made(tmp_path, launch, prepare=prepare), "lock:contend=2")
    # The copy itself is left.
    assert result.verdict == ("leaked" if copies else "clean"), shown(result)
    told = "the program of contender 0 was opened by a process that did not execute it"
    assert (told in shown(result)) == copies, shown(result)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ('"$@" > /dev/null; "$@"', "was started 2 times"),
        ('"$@" > /dev/null & "$@"; wait', "was started 2 times"),
        ('timeout -s KILL 0.02 "$@"; date "+end 0 %s%N"; exit 0', "was not seen to run to its end"),
        ('date "+begin 0 %s%N"; date "+end 0 %s%N"; exit 0', "was not seen to run to its end"),
    ],
    ids=["twice", "twice at once", "cut short", "never"],
)
def test_a_run_that_is_ok_had_its_payload_run_once_and_to_its_end(tmp_path: Path, inside: str, said: str) -> None:
    launch = f"shift 2; mkdir -p {HOME}; exec flock -n -o -E 9 {LOCK} {DIES} sh -c '{inside}' sh \"$@\""
    result = run(made(tmp_path, launch), "lock:contend=2" if "started" in said else "lock:stop-holder")
    assert {"false-status", "not-reached"} & outcomes(result), shown(result)
    assert re.search(rf"contender \d {said}; status OK", shown(result)), shown(result)


def test_the_output_of_another_run_is_not_taken_for_one_s_own(tmp_path: Path) -> None:
    # Who finds the box in use waits for the other one's output, and shows it as the own one.
    shares = f"""shift 2; mkdir -p {HOME}; flock -n -o -E 9 {LOCK} {DIES} sh -c '"$@" > {HOME}/out' sh "$@"
code=$?; [ $code = 9 ] && until grep -q end {HOME}/out; do sleep 0.01; done; cat {HOME}/out"""
    result = run(made(tmp_path, shares), "lock:contend=2")
    assert outcomes(result) == {"false-status"}, shown(result)
    assert "was not seen to run to its end; status OK" in shown(result)


def test_a_run_that_is_ok_before_its_payload_has_ended_is_a_wrong_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The payload keeps the lock, and tells its end later, while the others are still refused.
    monkeypatch.setattr("leakcheck.trials.crowd.HELD", 0.3)
    late = f"shift 2; mkdir -p {HOME}; exec 7> {LOCK}; flock -n 7 || {{{{ sleep 0.7; exit 9; }}}}; "
    for ends, wanted in (('setsid "$@" & sleep 0.1', {"false-status"}), ('setsid "$@" & wait $!', set())):
        result = run(made(tmp_path, f"{late}{ends}; exit 0"), "lock:contend=2")
        assert outcomes(result) == wanted, shown(result)
        assert not wanted or re.search(r"contender \d was not seen to run to its end; status OK", shown(result))


@pytest.mark.parametrize("plan", ["lock:contend=2", "lock:stop-holder"])
def test_a_refused_run_whose_end_opens_the_box_lets_the_next_one_in(tmp_path: Path, plan: str) -> None:
    # All who come at once are refused before that.
    unlocks = f"""shift 2; mkdir -p {HOME}; if mkdir {LOCK}; then {DIES} "$@"; code=$?; rmdir {LOCK}; exit $code; fi
sleep 0.3; rmdir {LOCK}; exit 9"""
    named = TABLE.replace(f'files = ["{LOCK}"], ', "")
    result = run(made(tmp_path, unlocks, named), plan)
    assert outcomes(result) == {"split-brain"}, shown(result)
    kept = run(made(tmp_path, unlocks.replace(f"rmdir {LOCK}; exit 9", "exit 9"), named, name="kept"), plan)
    assert kept.verdict == "clean", shown(kept)


def test_the_time_in_which_no_pid_could_be_reused_is_not_the_target_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The payload outlives the shell whose session it is in, and keeps the lock.
    monkeypatch.setattr("leakcheck.trials.bystanders.HELD", 1.0)
    outlives = f'shift 2; mkdir -p {HOME}; flock -n -o -E 9 {LOCK} "$@"; exit $?'
    result = run(made(tmp_path, outlives, TABLE.replace("within = 2", "within = 0.9")), "lock:reuse-pid")
    assert outcomes(result) == {"not-reached"}, shown(result)


def test_a_payload_whose_start_nobody_could_see_is_unknown_and_never_a_pass(tmp_path: Path) -> None:
    copies = f"""shift 2; mkdir -p {HOME}; exec flock -n -o -E 9 {LOCK} {DIES} --mount sh -c '
d=${{{{1%/*}}}}; mount -t tmpfs x /mnt && cp "$1" /mnt && mount --bind /mnt "$d"; exec "$@"' sh "$@" """
    result = run(made(tmp_path, copies), "lock:contend=2")
    assert outcomes(result) == {"unknown"}, shown(result)
    assert "ran, but nobody saw it start" in shown(result)
    assert result.verdict == "unknown"


def test_a_lock_whose_file_was_replaced_keeps_nobody_out(tmp_path: Path) -> None:
    result = run(made(tmp_path, FLOCK), f"lock:{LOCK}:inode,held")
    assert outcomes(result) == {"split-brain"}, shown(result)
    assert run(made(tmp_path, FLOCK), f"lock:{LOCK}:garbage,held").verdict == "clean"


@pytest.mark.parametrize(
    ("damage", "also", "verdict"),
    [
        ("missing,stale", "", "clean"),
        ("inode,free", "", "clean"),
        ("missing,stale", "echo > /dev/shm/more.$$; ", "leaked"),
    ],
)
def test_a_lock_file_in_shared_memory_that_is_made_again_is_no_leak_and_another_file_there_is(
    tmp_path: Path, damage: str, also: str, verdict: str
) -> None:
    lock = "/dev/shm/locks-test.lock"
    of = made(tmp_path, also + FLOCK.replace(LOCK, lock), more=TABLE.replace(LOCK, lock))
    result = run(of, f"lock:{lock}:{damage}")
    assert result.verdict == verdict, shown(result)


def test_a_payload_that_outlives_its_killed_supervisor_beside_the_next_one_is_a_split_brain(tmp_path: Path) -> None:
    survives = f'shift 2; mkdir -p {HOME}; exec flock -n -o -E 9 {LOCK} setsid "$@"'
    result = run(made(tmp_path, survives), "lock:kill-holder")
    assert "split-brain" in outcomes(result), shown(result)


def test_a_holder_that_is_stopped_between_its_check_and_its_lock_runs_beside_another(tmp_path: Path) -> None:
    races = f"""shift 2; mkdir -p {HOME}; [ -e {LOCK} ] && exit 9
: > {HOME}/mark; : > {LOCK}; "$@"; code=$?; rm -f {LOCK}; exit $code"""
    result = run(made(tmp_path, races), f"lock:stop=launch:0/open({HOME}/mark)#1")
    assert "split-brain" in outcomes(result), shown(result)
    kept = run(made(tmp_path, FLOCK, name="kept"), f"lock:stop=launch:0/open({LOCK})#1")
    assert kept.verdict == "clean", shown(kept)


def test_a_recovery_that_is_killed_must_not_keep_the_box(tmp_path: Path) -> None:
    stuck = f"{HOME}/stuck"
    launch = FLOCK.replace("exec flock", f"[ ! -e {stuck} ] || exit 9; exec flock")
    plan = f"lock:kill=recover:0/open({stuck})#1:after"
    once = f"mkdir -p {HOME}; [ ! -e {stuck} ] || exit 1; : > {stuck}; rm {stuck}"
    result = run(made(tmp_path, launch, recover=once), plan)
    assert "wedged" in outcomes(result), shown(result)
    assert "the box of a killed holder was not free again in 2 s" in shown(result)
    again = f"mkdir -p {HOME}; : > {stuck}; rm {stuck}"
    assert run(made(tmp_path, launch, recover=again, name="again"), plan).verdict == "clean"


def test_a_recovery_may_end_the_holder_if_the_adapter_says_so_and_goes_on_after_its_end(tmp_path: Path) -> None:
    launch = FLOCK.replace("exec flock", f"echo $$ > {HOME}/pid; exec flock")
    ends = f"[ ! -s {HOME}/pid ] || kill -9 $(cat {HOME}/pid); mkdir -p {HOME}; rm -f {HOME}/pid; sleep 0.3"
    result = run(
        made(tmp_path, launch, TABLE.replace("busy", "forces = true, busy"), recover=ends), "lock:recover-holder"
    )
    assert result.verdict == "clean", f"{shown(result)} {result.error}"
    assert {one.name: one.measured for one in result.criteria}["contenders admitted"] >= 2


def test_a_lock_that_is_known_by_its_pid_alone_is_stale_for_good_once_the_pid_is_reused(tmp_path: Path) -> None:
    assert "wedged" not in outcomes(run(made(tmp_path, PID), "lock:kill-holder"))
    result = run(made(tmp_path, PID), "lock:reuse-pid")
    assert "wedged" in outcomes(result), shown(result)
    assert "the box of a killed holder was not free again in 2 s" in shown(result)


def test_a_refusal_that_is_not_declared_is_a_wrong_status(tmp_path: Path) -> None:
    result = run(made(tmp_path, FLOCK.replace("-E 9", "-E 8")), "lock:contend=2")
    assert outcomes(result) == {"false-status"}, shown(result)
    assert "was neither admitted nor refused as the adapter's locks say; status RE" in shown(result)
    words = TABLE.replace("busy = [9]", 'words = ["in use"]')
    says = f"{FLOCK.replace('exec ', '').replace('-E 9', '-E 8')} || exit $(echo in use >&2; echo 8)"
    assert run(made(tmp_path, says, words, name="says"), "lock:contend=2").verdict == "clean"


def test_a_launch_that_waits_is_admitted_later_and_one_that_gives_up_is_wrong(tmp_path: Path) -> None:
    waits = TABLE.replace("busy = [9], ", "")
    assert run(made(tmp_path, FLOCK.replace("-n ", ""), waits), "lock:contend=3").verdict == "clean"
    gives_up = run(made(tmp_path, FLOCK, waits, name="gives-up"), "lock:contend=3")
    assert outcomes(gives_up) == {"false-status"}, shown(gives_up)


def test_a_lock_that_an_operator_has_to_mend_is_wedged(tmp_path: Path) -> None:
    result = run(made(tmp_path, FLOCK), f"lock:{LOCK}:loop,free")
    assert "wedged" in outcomes(result), shown(result)
    mends = run(
        made(tmp_path, FLOCK, recover=f"[ -f {LOCK} ] || rm -rf {LOCK}", name="mends"), f"lock:{LOCK}:loop,free"
    )
    assert outcomes(mends) <= {"bounded", "recovered"}, shown(mends)


def test_a_lock_file_that_goes_with_its_holder_is_not_damaged_while_the_box_is_free(tmp_path: Path) -> None:
    # Who has made the directory has the box.
    makes = f"""shift 2; mkdir -p {HOME}; mkdir {HOME}/d || exit 9; : > {LOCK}; {DIES} "$@"; code=$?
rm -r {LOCK} {HOME}/d; exit $code"""
    for launch, lasts in ((makes, False), (FLOCK, True)):
        of = made(tmp_path, launch, name=f"lasts-{lasts}".lower())
        facts = Locks().prepare(of, LocksOptions(), Ui(), never)
        plans = [str(plan) for plan in Locks().plans(LocksOptions(profile="quick"), facts)]
        assert any(plan.endswith(":missing,held") for plan in plans)
        assert any(plan.endswith(",free") for plan in plans) == lasts


def test_an_arena_that_cannot_hold_the_contenders_is_said_and_judges_nothing(tmp_path: Path) -> None:
    of = made(tmp_path, FLOCK)
    assert of.adapter.locks is not None
    with ArenaHost(of, 0, limits={"pids.max": 24}) as host:
        session = Session(of, host)
        contest = Contest(session, host, session.prepare(HOLDER), of.adapter.locks)
        with (
            contest.open(),
            pytest.raises(TargetError, match=r"cannot hold 64 more contenders: .* allows 24 processes"),
        ):
            contest.come(64)
            contest.wait()


def test_a_target_without_locks_is_not_applicable_and_never_a_pass(tmp_path: Path) -> None:
    without = target(tmp_path, 'exec "$@"')
    with pytest.raises(NotApplicableError, match=r"declares no locks; .* say in \[locks\] of"):
        run_campaign(Locks(), without, LocksOptions())
    done = subprocess.run(
        [*LEAKCHECK, "locks", "--target", str(without.path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "not applicable" in done.stderr


def test_a_lock_file_that_is_never_there_is_said_before_the_first_trial(tmp_path: Path) -> None:
    wrong = made(tmp_path, FLOCK, TABLE.replace("box.lock", "no.lock"))
    with pytest.raises(TargetError, match=r"there is no .*no\.lock; mend locks\.files"):
        run_campaign(Locks(), wrong, LocksOptions())


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"host": True}, "--host: runs contend"),
        ({"plan": parse("normal")}, "no plan of a lock"),
        ({"contenders": 1}, "--contenders 1: give 2 to 64"),
        ({"contenders": 65}, "--contenders 65: give 2 to 64"),
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        LocksOptions(**options).check()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ('files = ["run/x"]', "locks.files.*'run/x' is not absolute"),
        ('files = ["/run/a b"]', "locks.files.*' ' cannot stand in it"),
        ("busy = [0]", "locks.busy.*0: give exit codes from 1 to 255"),
        ('words = [""]', "locks.words.*an empty word"),
        ('waiting = ["/bin/true"]', "locks.waiting.*has no {program}"),
        ('shared = ["/run"]', "locks.shared.*give a path below {work}/"),
        ("within = nan", "locks.within.*give seconds above 0"),
    ],
)
def test_a_wrong_declaration_names_the_field(tmp_path: Path, field: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        made(tmp_path, FLOCK, f"locks = {{ {field} }}")


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        ("lock:stop=finish:0/open#1", "'finish' is no stage to stop; give launch"),
        ("lock:kill=prepare:0/open#1:before", "'prepare' is no stage to kill; give launch or finish or recover"),
        ("lock:kill=recover:0/open#1:before,waiting", "'waiting' is no flag of it"),
    ],
)
def test_a_plan_that_cannot_be_names_what_is_wrong(plan: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        injector_for(parse(plan))


@pytest.mark.parametrize(
    "plan", ["lock:contend=8", "lock:kill-holder,waiting", "lock:recover-holder", "lock:reuse-pid"]
)
def test_refbox_keeps_its_boxes_apart(plan: str) -> None:
    result = run(load("refbox"), plan)
    assert result.verdict == "clean", shown(result)


@pytest.mark.parametrize("damage", ["inode,held", "missing,held", "directory,free", "dangling,stale", "fifo,held"])
def test_refbox_mends_its_lock_file_by_itself(damage: str) -> None:
    result = run(load("refbox"), f"lock:/run/refbox/box-{{box}}.lock:{damage}")
    assert result.verdict == "clean", shown(result)
    assert outcomes(result) <= {"bounded"}, shown(result)


def test_a_holder_is_killed_at_the_start_of_its_payload_though_that_is_another_program_than_was_recorded() -> None:
    starts = [one for one in record_locks(load("refbox"), never).points if one.after == "execution" != one.phase]
    (plan,) = {str(kill_plan(one.point, "before")) for one in starts if one.point.operation == "execve"}
    result = run(load("refbox"), plan)
    assert result.outcomes == {"clean": 1}, shown(result)


def test_the_check_of_an_adapter_covers_its_locks(tmp_path: Path) -> None:
    assert all(one.passed for one in check(made(tmp_path, FLOCK), ["locks", "recovery"]))
    (finding,) = check(made(tmp_path, f'shift 2; mkdir -p {HOME}; touch {LOCK}; exec "$@"', name="none"), ["locks"])
    assert "lock:contend=2: the payloads of contenders 0 and 1 ran in one box at the same time" in finding.detail
    (finding,) = check(made(tmp_path, FLOCK, TABLE.replace("box.lock", "no.lock"), name="no"), ["recovery"])
    assert finding.detail == f"locks.files: while the payload ran there was no {HOME}/no.lock"
    assert check(target(tmp_path, 'exec "$@"'), ["locks"]) == []


@pytest.mark.slow  # 80 trials take most of a minute
def test_refbox_passes_the_quick_profile() -> None:
    result = run(load("refbox"), profile="quick")
    assert result.verdict == "clean", shown(result)
    assert result.trials >= 70


def test_the_quick_profile_has_each_kind_and_the_full_one_at_least_200() -> None:
    facts = Locks().prepare(load("refbox"), LocksOptions(), Ui(), never)
    full = {str(plan) for plan in Locks().plans(LocksOptions(), facts)}
    quick = {str(plan) for plan in Locks().plans(LocksOptions(profile="quick"), facts)}
    assert len(full) >= 200
    assert str(lock_plan("contend=64", waiting=True)) in full
    assert max(int(one.partition("=")[2].partition(",")[0]) for one in full if one.startswith("lock:contend")) == 64
    assert len(quick) < len(full) / 2
    few = Locks().plans(LocksOptions(contenders=5), facts)
    assert (
        max(int(str(one).partition("=")[2].partition(",")[0]) for one in few if str(one).startswith("lock:contend"))
        == 5
    )
