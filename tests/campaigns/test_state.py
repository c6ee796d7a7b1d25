"""`leakcheck state` damages a target's state files, and finds what the target then forgets, believes or waits for."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, target

from injectors import parse
from injectors.state import state_plan
from leakcheck.campaigns import Leaks, LeaksOptions, Result, State, StateOptions
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.state import Facts
from leakcheck.conformance import check
from leakcheck.errors import NotApplicableError, TargetError, UsageError
from leakcheck.targets import Target, load
from leakcheck.trials.executor import Ui
from leakcheck.trials.power import Cut, cuts
from leakcheck.trials.state_history import moments, record_history

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

HOME = "/var/lib/state-test"
# Its state names a directory that its recovery has to remove. The payload dies with the supervisor.
DIES = "setpriv --pdeathsig KILL unshare --pid --fork --kill-child"
LAUNCH = f"""wall=$2; shift 2; mkdir -p {HOME}/d; printf '{{{{"pid": %d, "made": "%s"}}}}' $$ {HOME}/made-$$ \\
  > {HOME}/d/state.json
mkdir {HOME}/made-$$; {DIES} timeout $wall "$@"; code=$?; rmdir {HOME}/made-$$; rm {HOME}/d/state.json; exit $code"""
TRUSTS = f"""cd {HOME}/d || exit 0; rmdir "$(cut -d '"' -f 6 state.json)"; rm -rf state.json"""
KNOWS = f"rm -rf {HOME}/made-* {HOME}/d/state.json"
MORE = f'state_files = ["{HOME}/d/state.json"]\nstate = ["{HOME}"]\n'


def made(tmp_path: Path, recover: str, more: str = "") -> Target:
    return target(tmp_path, LAUNCH, recover=recover, more=MORE + more)


def run(of: Target, plan: str = "", **options: Any) -> Result:
    if plan:
        flag = "" if plan.startswith(("at=", "both=", "left=", "undone=", "cut=")) or "," in plan else ",sleeping"
        options |= {"plan": parse(f"state:{HOME}/d/state.json:{plan}{flag}"), "iterations": 1}
    return run_campaign(State(), of, StateOptions(settle=0.1, profile="quick", **options))


def outcomes(result: Result) -> set[str]:
    return {finding.outcome for finding in result.findings}


@pytest.mark.parametrize("damage", ["missing", "empty", "truncate=9", "retype=/made", "directory"])
def test_a_recovery_that_believes_its_state_forgets_what_it_names(tmp_path: Path, damage: str) -> None:
    result = run(made(tmp_path, TRUSTS), damage)
    assert result.verdict == "leaked", result.findings
    assert f"{HOME}/made-" in " ".join(label for one in result.findings for left in one.leaks for label in left.labels)


@pytest.mark.slow  # Each damage of a profile; refbox passes them in tests/docs.
def test_a_recovery_that_needs_no_state_passes_with_every_damage(tmp_path: Path) -> None:
    result = run(made(tmp_path, KNOWS))
    assert outcomes(result) <= {"recovered"}, [(one.outcome, one.detail, one.plan) for one in result.findings]
    assert result.verdict == "clean"
    assert result.trials > 60
    assert {"missing", "fifo", "empty", "drop", "truncate", "flip"} <= result.endings.keys()


def test_a_damage_that_the_log_does_not_tell_of_fails_and_has_a_replay_line(tmp_path: Path) -> None:
    log = f'[damage]\nlog = "{HOME}/log"\nwords = ["damaged"]\n'
    tells = f"[ -s {HOME}/d/state.json ] || echo 'state damaged' >> {HOME}/log; {KNOWS}"
    quiet = run(made(tmp_path, tells, log), "truncate=9")
    (finding,) = [one for one in quiet.findings if "not noticed" in one.detail]
    assert "truncate=9,sleeping" in finding.replay
    assert quiet.failed == ["damages that the target's log does not tell of"]
    told = run(made(tmp_path, tells, log), "empty")
    assert not told.failed, told.findings


LOG = f'[damage]\nlog = "{HOME}/log"\nwords = ["damaged"]\n'
REWRITES = f"(echo x; cat {HOME}/log) > {HOME}/n; mv {HOME}/n {HOME}/log"
TELLS = f"[ -s {HOME}/d/state.json ] || echo damaged >> {HOME}/log"


def test_a_log_that_tells_of_damage_where_there_is_none_proves_nothing(tmp_path: Path) -> None:
    cries = made(tmp_path, f"echo damaged or not >> {HOME}/log; {KNOWS}", LOG)
    # A replay of one damage, too.
    for damage in ("empty", "none"):
        result = run(cries, damage)
        (finding,) = [one for one in result.findings if "without any damage" not in one.detail and one.detail]
        assert result.failed == ["untouched states that the target's log calls damaged"]
        assert "tells of damage though nothing was damaged" in finding.detail
        assert ":none,sleeping' --iterations 1" in finding.replay or ":none,sleeping --iterations 1" in finding.replay
    # The campaign has that trial always, whatever is drawn.
    facts = Facts({f"{HOME}/d/state.json": b"{}"}, {f"{HOME}/d/state.json": []})
    plans = State().plans(StateOptions(iterations=1), facts)
    assert str(plans[0]).rpartition(":")[2] == "none,sleeping"
    assert not run(made(tmp_path, f"{TELLS}; {KNOWS}", LOG), "none").failed


@pytest.mark.parametrize(
    ("launch", "recover", "told"),
    [
        (f"[ -e {HOME}/log ] || echo not damaged > {HOME}/log", REWRITES, False),
        (
            f"[ -e {HOME}/log ] || echo not damaged > {HOME}/log",
            f"{TELLS}; {REWRITES}",
            True,
        ),
        (f"echo hello >> {HOME}/log", f"mv {HOME}/log {HOME}/log.1; {TELLS}", True),
        (f"[ -e {HOME}/log ] || head -c 5000000 /dev/zero > {HOME}/log", TELLS, True),
        (":", f"rm -f {HOME}/log; mkfifo {HOME}/log", False),
        (":", f"{TELLS}; rm -f {HOME}/log; mkdir {HOME}/log", False),
        (":", f"{TELLS}; rm -f {HOME}/log; ln -s log {HOME}/log", False),
    ],
    ids=["again", "first line", "rotated", "much", "fifo", "directory", "loop"],
)
def test_of_a_log_only_new_lines_count_and_one_that_cannot_be_read_tells_of_nothing(
    tmp_path: Path, launch: str, recover: str, told: bool
) -> None:
    logs = LAUNCH.replace("shift 2;", f"shift 2; mkdir -p {HOME}; {launch};")
    of = target(tmp_path, logs, recover=f"{recover}; {KNOWS}", more=MORE + LOG)
    result = run(of, "empty")
    assert ("damages that the target's log does not tell of" not in result.failed) == told, result.to_json()
    assert not (told and result.failed), result.failed


def test_a_box_or_a_recovery_that_damage_puts_out_of_order_is_wedged(tmp_path: Path) -> None:
    reads = f"[ ! -e {HOME}/d/state.json ] || python3 -m json.tool {HOME}/d/state.json && {KNOWS}"
    stuck = run(made(tmp_path, reads), "truncate=9")
    assert stuck.findings[0].outcome == "wedged"
    assert "recover: sh ended with 1" in stuck.findings[0].detail
    # Only the next box says so.
    refuses = LAUNCH.replace("shift 2;", f"shift 2; [ ! -e {HOME}/poison ] || exit 3;")
    other = target(tmp_path, refuses, recover=f"{KNOWS}; echo > {HOME}/poison", more=MORE, name="other")
    spread = run(other, "empty")
    assert spread.findings[0].outcome == "wedged"
    assert "another box: status RE, not OK" in spread.findings[0].detail


def test_a_recovery_that_works_only_once_is_wedged(tmp_path: Path) -> None:
    once = f"[ ! -e {HOME}/once ] || exit 7; [ -s {HOME}/d/state.json ] || : > {HOME}/once; {KNOWS}"
    result = run(made(tmp_path, once), "empty")
    assert "wedged" in outcomes(result), result.to_json()
    assert "after the same once more: recover: sh ended with 7" in " ".join(one.detail for one in result.findings)


def test_a_target_without_state_files_is_not_applicable_and_never_a_pass(tmp_path: Path) -> None:
    without = target(tmp_path, 'exec "$@"')
    with pytest.raises(NotApplicableError, match=r"declares no state file; .* name it in state_files"):
        run_campaign(State(), without, StateOptions())
    words = ["state", "--target", str(without.path)]
    done = subprocess.run([*LEAKCHECK, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "not applicable" in done.stderr


def test_a_state_file_that_is_never_there_is_said_before_the_first_trial(tmp_path: Path) -> None:
    wrong = target(tmp_path, 'exec "$@"', more='state_files = ["/var/lib/no-such/*.json"]')
    with pytest.raises(TargetError, match=r"there is no /var/lib/no-such/\*.json; mend state_files"):
        run_campaign(State(), wrong, StateOptions())


def test_a_plan_whose_file_is_not_there_was_not_tested(tmp_path: Path) -> None:
    of = made(tmp_path, KNOWS)
    plan = parse("state:/var/lib/no-such:missing,sleeping")
    result = run_campaign(State(), of, StateOptions(plan=plan, iterations=1))
    assert outcomes(result) == {"not-reached"}
    assert result.verdict == "unknown"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"host": True}, "--host: state files are damaged in arenas only"),
        ({"plan": parse("normal")}, "no plan of a damage"),
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        StateOptions(**options).check()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ('state_files = ["run/x"]', "state_files.*'run/x' is not absolute"),
        ('state_files = ["/run/a b"]', "state_files.*' ' cannot stand in it; put \\* in its place"),
        ('state_files = ["/run/{wall}"]', "state_files.*unknown placeholder {wall}"),
        ('damage = { log = "/run/log" }', "damage.*log and words go together"),
        ('damage = { keeps = ["/"] }', "damage.keeps.*give an absolute path below /"),
    ],
)
def test_a_wrong_declaration_names_the_field(tmp_path: Path, field: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        target(tmp_path, 'exec "$@"', more=field)


@pytest.mark.slow  # The how-to's command, which tests/docs runs, ends with 0 only if nothing is found.
def test_refbox_notices_every_damage_and_leaves_nothing() -> None:
    result = run_campaign(State(), load("refbox"), StateOptions(profile="quick"))
    assert result.verdict == "clean", [(one.outcome, one.plan, one.detail) for one in result.findings]
    assert not result.failed
    assert result.trials >= 100
    assert json.loads(result.to_json())["campaign"] == "state"


def test_the_check_of_an_adapter_says_that_a_state_file_is_never_there(tmp_path: Path) -> None:
    of = made(tmp_path, KNOWS)
    assert all(one.passed for one in check(of, ["recovery"]))
    of.path.write_text(of.path.read_text().replace('state.json"]', 'state.jsn"]'))
    (finding,) = check(load(of.path), ["recovery"])
    assert finding.detail == f"state_files: while the payload ran there was no {HOME}/d/state.jsn"


def test_what_the_kill_alone_leaves_is_said_to_need_no_damage(tmp_path: Path) -> None:
    forgets = run(made(tmp_path, f"rm -rf {HOME}/d/state.json"), iterations=6)
    (finding,) = [one for one in forgets.findings if one.outcome == "silent"]
    assert "it is so without any damage, too" in finding.detail
    # The replay of one damage says so as well, also where the supervisor lives.
    for plan in ("empty", "empty,living"):
        replayed = run(made(tmp_path, f"rm -rf {HOME}/d/state.json"), plan)
        assert sum(replayed.outcomes.values()) == 2
    assert "without any damage" in run(made(tmp_path, f"rm -rf {HOME}/d/state.json"), "empty").findings[0].detail


def test_what_the_target_keeps_of_damaged_state_excuses_nothing_of_other_campaigns(tmp_path: Path) -> None:
    bad = f"{HOME}/bad"
    script = f"wall=$2; shift 2; mkdir -p {HOME}; [ -e {bad} ] && mine= || mine=1; : > {bad}; "
    script += f'{DIES} timeout $wall "$@"; code=$?; '
    script += f'[ -z "$mine" ] || rm {bad}; exit $code'
    of = target(tmp_path, script, more=f'damage = {{ keeps = ["{bad}"] }}\nstate = ["{HOME}"]')
    plan = parse("forced:supervisor@payload+0ms,sleeping")
    result = run_campaign(Leaks(), of, LeaksOptions(plan=plan, iterations=1, settle=0.1))
    classes = {left.class_ for one in result.findings for left in one.leaks if bad in " ".join(left.labels)}
    assert classes == {"orphaned"}, result.to_json()


def test_without_a_log_nothing_is_said_of_what_it_tells(tmp_path: Path) -> None:
    result = run(made(tmp_path, KNOWS), "empty")
    assert not any("log" in one.name for one in result.criteria)


TEMPORARY = f"""wall=$2; shift 2; mkdir -p {HOME}/d; printf '{{{{"made": "%s"}}}}' {HOME}/made-$$ > {HOME}/d/state.new
SYNC; mv {HOME}/d/state.new {HOME}/d/state.json
mkdir {HOME}/made-$$; {DIES} timeout $wall "$@"; code=$?; rmdir {HOME}/made-$$; rm {HOME}/d/state.json; exit $code"""
FORGETS = f"rm -rf {HOME}/made-* {HOME}/d/state.json"


def renames(tmp_path: Path, recover: str, sync: str = ":", more: str = "") -> Target:
    return target(tmp_path, TEMPORARY.replace("SYNC", sync), recover=recover, more=MORE + more)


def test_each_write_of_a_run_is_tried_and_each_half_of_a_rename(tmp_path: Path) -> None:
    of = renames(tmp_path, f"{FORGETS}; rm -f {HOME}/d/state.new")
    options = StateOptions(settle=0.1)
    facts = State().prepare(of, options, Ui(), lambda: False)
    words = [str(plan).rpartition(":")[2] for plan in State().plans(options, facts)]
    # An empty file, its content, the new name, and the removal.
    assert [word for word in words if word.startswith("at=") and "." not in word] == [f"at={n}" for n in range(1, 5)]
    assert {"at=2.19", "undone=3", "both=3", "left=3", "missing,living", "cut=posix.8.1"} <= {*words}, words
    for plan in ("at=2", "at=2.19", "undone=3", "both=3"):
        result = run(of, plan)
        assert not result.failed, (plan, [(one.outcome, one.detail) for one in result.findings])


@pytest.mark.parametrize("half", ["undone", "left"])
def test_a_recovery_that_forgets_the_temporary_file_leaves_it(tmp_path: Path, half: str) -> None:
    of = renames(tmp_path, FORGETS)
    recorded = [record_history(of, lambda: False) for _ in range(2)]
    (plan,) = [one for one in moments(*recorded, of.adapter.state_files[0]) if one.startswith(half)]
    # The next run renames it away, unless it is another box's.
    found = run(of, plan)
    assert "d/state.new" in " ".join(label for one in found.findings for left in one.leaks for label in left.labels)


def test_a_state_that_is_not_synced_is_empty_after_a_power_cut_and_one_that_is_is_not(tmp_path: Path) -> None:
    reads = f"[ ! -e {HOME}/d/state.json ] || python3 -m json.tool {HOME}/d/state.json && {FORGETS} {HOME}/d/state.new"
    of = renames(tmp_path, reads)
    power = [
        str(plan).rpartition(":")[2] for plan in cuts(of, record_history(of, lambda: False), of.adapter.state_files[0])
    ]
    stuck = [run(of, plan) for plan in power]
    assert "wedged" in {outcome for one in stuck for outcome in outcomes(one)}, power
    synced = renames(tmp_path, reads, sync=f"sync {HOME}/d/state.new")
    power = [
        str(plan).rpartition(":")[2]
        for plan in cuts(synced, record_history(synced, lambda: False), of.adapter.state_files[0])
    ]
    assert power
    assert "wedged" not in {outcome for plan in power for outcome in outcomes(run(synced, plan))}


# A state with the boot's id; the pid is that of a process which lives in each arena.
BOOT = f"""wall=$2; shift 2; mkdir -p {HOME}/d
echo 1 $(cat /proc/sys/kernel/random/boot_id) > {HOME}/d/new; sync {HOME}/d/new
mv {HOME}/d/new {HOME}/d/state.json; sync
{DIES} timeout $wall "$@"; code=$?; rm {HOME}/d/state.json; exit $code"""
LIVES = f"[ ! -e {HOME}/d/state.json ] || {{{{ read pid boot < {HOME}/d/state.json; kill -0 $pid"


@pytest.mark.parametrize(
    ("lives", "stuck"),
    [(f"{LIVES}; }}}}", True), (f'{LIVES} && [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ]; }}}}', False)],
    ids=["by its pid alone", "by its boot, too"],
)
def test_after_a_power_cut_it_is_another_boot(tmp_path: Path, lives: str, stuck: bool) -> None:
    # Who still lives is not cleaned up after.
    recover = f"{lives} && [ -e {HOME}/d/state.json ] && exit 1; rm -f {HOME}/d/state.json {HOME}/d/new"
    of = target(tmp_path, BOOT, recover=recover, more=MORE)
    state = of.adapter.state_files[0]
    plan = next(
        plan
        for plan, cut in cuts(of, record_history(of, lambda: False), state).items()
        if state in cut.disk and b"-" in (cut.disk[state].content or b"")
    )
    result = run(of, str(plan).rpartition(":")[2])
    assert ("wedged" in outcomes(result)) == stuck, result.to_json()
    assert result.verdict == ("leaked" if stuck else "clean")


def empty(name: str, cut: Cut) -> bool:
    return any(path.endswith(f"/{name}") and entry.content == b"" for path, entry in cut.disk.items())


def test_a_recovery_that_a_power_cut_interrupts_must_not_be_stuck_on_what_it_wrote_itself(tmp_path: Path) -> None:
    notes = f"[ ! -e {HOME}/d/notes ] || [ -s {HOME}/d/notes ] || exit 1; echo begun > {HOME}/d/notes"
    for recover, stuck in ((f"{notes}; {FORGETS} {HOME}/d/notes", True), (f"{FORGETS} {HOME}/d/state.new", False)):
        of = renames(tmp_path, f"mkdir -p {HOME}/d; {recover}", sync=f"sync {HOME}/d/state.new")
        facts = State().prepare(of, StateOptions(settle=0.1, profile="quick"), Ui(), lambda: False)
        # It would not be stuck on what the run has written.
        torn = [plan for plan, cut in facts.recovery.items() if stuck and empty("notes", cut)]
        first, again = [*facts.cuts][-1], (torn or [*facts.recovery])[0]
        found = [outcomes(run(of, str(plan).rpartition(":")[2])) for plan in (first, again)]
        assert "wedged" not in found[0]
        assert ("wedged" in found[1]) == stuck, (again, found)
    with pytest.raises(UsageError, match="there is no such instant"):
        run(of, "cut=posix.1.0.999.0")


def test_power_cuts_that_cannot_be_tried_during_a_recovery_are_named_with_the_reason(tmp_path: Path) -> None:
    of = renames(tmp_path, "exit 3")
    one, *notes = run(of, iterations=1).points["notes"]
    assert one.startswith("no damage was tried beside another box")
    assert notes
    about = "no power cut was tried during the recovery after state:"
    assert all(note.startswith(about) and ": recover: sh ended with 3" in note for note in notes), notes
    # One that is asked for and cannot be made is refused with the same reason.
    plan = notes[0].removeprefix(about).partition(": ")[0].rpartition(":")[2]
    with pytest.raises(UsageError, match=f"there is no such instant.*; {about}"):
        run(of, f"{plan}.1.0")


def test_a_damage_in_mid_run_lets_the_run_end_by_its_limit(tmp_path: Path) -> None:
    ends = run(made(tmp_path, KNOWS), "missing,living")
    assert ends.verdict == "clean", ends.findings
    assert ends.endings["missing"].keys() <= {"clean", "recovered"}
    trusting = LAUNCH.replace(f"rmdir {HOME}/made-$$; rm", f'rmdir "$(cut -d \'"\' -f 6 {HOME}/d/state.json)"; rm')
    assert trusting != LAUNCH
    lost = run(target(tmp_path, trusting, recover="true", more=MORE, name="trusting"), "missing,living")
    assert "made-" in " ".join(label for one in lost.findings for left in one.leaks for label in left.labels)


def test_a_power_cut_that_no_run_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such instant"):
        run(renames(tmp_path, FORGETS), "cut=posix.999.0")


def test_what_is_in_memory_has_no_power_cuts(tmp_path: Path) -> None:
    launch = TEMPORARY.replace("SYNC", ":").replace(HOME, "/run/state-test")
    of = target(
        tmp_path, launch, recover="rm -rf /run/state-test", more='state_files = ["/run/state-test/d/state.json"]'
    )
    recorded = record_history(of, lambda: False)
    assert recorded.all
    assert not cuts(of, recorded, of.adapter.state_files[0])


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (f"ln -s /proc/1/root/etc/passwd {HOME}/d/s", "no state file can be read: .*invalid cross-device link"),
        (f"mkfifo {HOME}/d/s", "no state file can be read: .*not a regular file"),
        (f"rmdir {HOME}/d; ln -sfn {HOME}/d {HOME}/d", "there is no .*; mend state_files"),
    ],
)
def test_a_state_file_that_leads_elsewhere_is_neither_read_nor_damaged(tmp_path: Path, hostile: str, said: str) -> None:
    before = Path("/etc/passwd").stat()
    script = f'wall=$2; shift 2; mkdir -p {HOME}/d; {hostile}; {DIES} timeout $wall "$@"; c=$?; rm -rf {HOME}; exit $c'
    of = target(tmp_path, script, recover=f"rm -rf {HOME}", more=f'state_files = ["{HOME}/d/s"]\nstate = ["{HOME}"]\n')
    with pytest.raises(TargetError, match=said):
        run_campaign(State(), of, StateOptions(settle=0.1, profile="quick"))
    result = run_campaign(
        State(), of, StateOptions(settle=0.1, plan=state_plan(f"{HOME}/d/s", "garbage"), iterations=1)
    )
    assert result.outcomes == {"not-reached": 2}, result.findings
    after = Path("/etc/passwd").stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def test_state_files_with_hostile_names_are_damaged_and_recovered(tmp_path: Path) -> None:
    names = f"cd {HOME}/d; printf a > 'x[*]?'; printf b > 'n\n.json'; printf c > \"$(printf '\\377')\""
    script = f'wall=$2; shift 2; mkdir -p {HOME}/d; {names}; {DIES} timeout $wall "$@"; c=$?; rm -rf {HOME}/d; exit $c'
    of = target(tmp_path, script, recover=f"rm -rf {HOME}", more=f'state_files = ["{HOME}/d/*"]\nstate = ["{HOME}"]\n')
    for damage in ("garbage", "at=2"):
        options = StateOptions(settle=0.1, plan=state_plan(f"{HOME}/d/*", damage), iterations=1)
        assert run_campaign(State(), of, options).verdict == "clean", damage


@pytest.mark.parametrize("keeps", [True, False])
def test_a_quarantine_that_deletes_the_damaged_file_keeps_no_evidence(tmp_path: Path, keeps: bool) -> None:
    does = f"mkdir -p {HOME}/bad; mv {HOME}/d/state.json {HOME}/bad/one" if keeps else f"rm {HOME}/d/state.json"
    tells = f"python3 -m json.tool {HOME}/d/state.json || {{{{ echo damaged >> {HOME}/log; {does}; }}}}; {KNOWS}"
    of = made(tmp_path, tells, LOG + f'keeps = ["{HOME}/bad/*"]\n')
    result = run(of, "truncate=9")
    wanted = [] if keeps else ["damaged states of which nothing is kept where the adapter says"]
    assert result.failed == wanted, (result.to_json(), keeps)
    assert keeps or f"nothing is in {HOME}/bad/*" in " ".join(one.detail for one in result.findings)
    # There was nothing to keep.
    assert not run(of, "empty").failed


def test_a_state_file_that_is_never_there_beside_another_was_not_tested(tmp_path: Path) -> None:
    more = MORE.replace('state.json"]', f'state.json", "{HOME}/d/sttae.json"]')
    result = run(target(tmp_path, LAUNCH, recover=KNOWS, more=more), iterations=1)
    assert result.verdict == "unknown"
    assert result.failed == ["declared state files that were never there, and were not damaged"]
    assert any(note.startswith(f"state file {HOME}/d/sttae.json: it is not there") for note in result.points["notes"])
