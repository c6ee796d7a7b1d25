"""`leakcheck exhaust` lets a target run out of something, and finds how it fails, and what it then leaves or says."""

import os
from pathlib import Path
from typing import Any

import pytest
from made import target

from injectors import parse
from injectors.cgroup_limits import Memory
from leakcheck.campaigns import Exhaust, ExhaustOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.grace import BLAMED, CRASHED, LATE, MISSED, UNNAMED
from leakcheck.errors import UsageError
from leakcheck.targets import Target, load

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

# A state file in a directory of the run's own; both go at its end.
STEPS = """shift 2; d=/var/lib/exhaust-test; mkdir $d || exit 99
printf x > $d/state || {fails}
"$@"; code=$?; rm -r $d; exit $code"""
WELL = STEPS.format(fails="{{ rm -r $d; echo no space left; exit 125; }}")


def made(tmp_path: Path, script: str, *, words: str = "", internal: str = "", recover: str = "") -> Target:
    more = f"[exhaustion]\nwords = {words}\n" if words else ""
    made = target(tmp_path, script, recover=recover, more=more)
    if internal:
        text = made.path.read_text().replace("timeout = [124]", f"timeout = [124], internal = {internal}")
        made.path.write_text(text)
        return load(made.path)
    return made


def with_a_status_file(tmp_path: Path, status: str) -> Target:
    """Make a target that writes this status if there is no inode for a file of its own."""
    script = f"""shift 2; at=/var/lib/leakcheck-campaign/box/status
printf x > /run/s || {{{{ printf s:{status} > $at; exit 0; }}}}
rm /run/s; "$@"; printf s:OK > $at"""
    made = target(tmp_path, script)
    file = 'source = "meta", file = "{work}/status", status = "s", statuses = { OK = "OK", RE = "RE", IE = "IE" }'
    made.path.write_text(made.path.read_text().replace("timeout = [124]", file))
    return load(made.path)


def run(of: Target, plan: str, **options: Any) -> Result:
    return run_campaign(Exhaust(), of, ExhaustOptions(settle=0.1, plan=parse(plan), **options))


def hit(result: Result) -> int:
    return sum(one.measured for one in result.criteria if one.name == "trials that ran against their limit")


@pytest.mark.parametrize("plan", ["disk:full@0", "disk:inodes@1"])
def test_a_target_that_fails_in_order_passes(tmp_path: Path, plan: str) -> None:
    words = '{ disk = ["no space left"] }'
    result = run(made(tmp_path, WELL, words=words, internal="[99, 125]"), plan)
    assert result.verdict == "clean", result.to_json()
    assert not result.failed
    assert hit(result) == 1
    assert UNNAMED in {one.name for one in result.criteria}


def test_what_a_failed_run_leaves_is_found_with_the_line_that_replays_it(tmp_path: Path) -> None:
    result = run(made(tmp_path, STEPS.format(fails="exit 125")), "disk:full@0")
    assert result.verdict == "leaked"
    (finding,) = result.findings
    assert "/var/lib/exhaust-test" in str(finding.leaks)
    assert "leakcheck exhaust --target" in finding.replay
    assert "--plan disk:full@0 --iterations 1" in finding.replay


def test_a_clean_up_under_a_full_disk_that_needs_room_is_found(tmp_path: Path) -> None:
    script = """shift 2; mkdir /var/lib/exhaust-test; "$@"; code=$?
printf x > /var/lib/done && rm -r /var/lib/done /var/lib/exhaust-test; exit $code"""
    result = run(made(tmp_path, script), "disk:full@0,cleanup")
    assert result.verdict == "leaked"
    assert {finding.outcome for finding in result.findings} == {"silent"}, result.findings
    assert not run(made(tmp_path, script), "fd:limit=100,cleanup").findings


def test_a_status_ok_without_the_output_of_the_payload_is_wrong(tmp_path: Path) -> None:
    script = 'shift 2; "$@" > /run/out; cat /run/out; rm /run/out; exit 0'
    result = run(made(tmp_path, script), "disk:full@0")
    assert [finding.outcome for finding in result.findings] == ["false-status"]
    assert "did not print all" in result.findings[0].detail


def test_a_status_ok_of_a_payload_that_never_ran_is_wrong(tmp_path: Path) -> None:
    result = run(made(tmp_path, 'printf x > /run/s || exit 0; rm /run/s; shift 2; "$@"'), "disk:full@0")
    assert "payload did not run" in result.findings[0].detail


@pytest.mark.parametrize("how", ["kill -SEGV $$", "sh -c 'kill -ABRT $$'; exit 125"])
def test_a_crash_of_the_target_or_of_a_helper_is_found(tmp_path: Path, how: str) -> None:
    script = f'printf x > /run/s || {{{{ {how}; }}}}; rm /run/s; shift 2; "$@"'
    result = run(made(tmp_path, script), "disk:full@0")
    assert CRASHED in result.failed, result.to_json()
    assert "ended by SIG" in " ".join(finding.detail for finding in result.findings)


def test_a_core_file_of_a_crash_is_told_with_its_path(tmp_path: Path) -> None:
    crashes = "{{ cd /var/lib; ulimit -c unlimited; kill -SEGV $$; }}"
    result = run(made(tmp_path, STEPS.format(fails=crashes)), "fd:limit=4")
    assert CRASHED in result.failed, result.to_json()
    said = " ".join(finding.detail for finding in result.findings)
    assert "was ended by SIGSEGV, and the kernel dumped its core by" in said
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    assert pattern.startswith(("|", "/")) or "the core file /var/lib/core" in said, said


def test_a_next_submission_that_takes_too_long_after_the_release_fails(tmp_path: Path) -> None:
    slow = STEPS.format(fails="{{ rm -r $d; touch /run/late; exit 125; }}").replace(
        "d=", "[ ! -e /run/late ] || {{ rm /run/late; sleep 1.2; }}; d="
    )
    of = made(tmp_path, slow)
    assert LATE not in run(of, "disk:inodes@1").failed
    of.path.write_text(of.path.read_text() + "\nexhaustion = { within = 1 }\n")
    result = run(load(of.path), "disk:inodes@1")
    assert LATE in result.failed, result.to_json()
    (finding,) = [one for one in result.findings if "the next submission took" in one.detail]
    assert "--plan disk:inodes@1 --iterations 1" in finding.replay


def test_ok_of_a_payload_that_did_not_end_so_is_wrong_though_somebody_printed_its_words(tmp_path: Path) -> None:
    lies = 'shift 2; printf x > /run/s || {{ prlimit --fsize=0 "$@"; echo counted to 1000; exit 0; }}; rm /run/s; "$@"'
    result = run(made(tmp_path, lies), "disk:full@0")
    assert "payload ended otherwise" in result.findings[0].detail, result.to_json()


def test_an_error_that_does_not_name_what_is_lacking_is_found_only_where_words_are_declared(tmp_path: Path) -> None:
    script = STEPS.format(fails="{{ rm -r $d; echo it failed; exit 125; }}").replace("> $d/state", "2>&- > $d/state")
    assert UNNAMED in run(made(tmp_path, script, words='{ disk = ["full"] }', internal="[125]"), "disk:full@0").failed
    assert not run(made(tmp_path, script, internal="[125]"), "disk:full@0").failed


EVERY = '{ disk = ["no space left"], fd = ["too many open files"], memory = ["cannot allocate memory"] }'


@pytest.mark.parametrize(
    ("always", "fails"),
    [("", "too many open files"), ("no space left", "it failed")],
    ids=["another", "in each run"],
)
def test_an_error_that_names_another_resource_or_says_what_each_run_says_names_nothing(
    tmp_path: Path, always: str, fails: str
) -> None:
    script = STEPS.format(fails=f"{{{{ rm -r $d; echo {fails}; exit 125; }}}}").replace("> $d", "2>&- > $d")
    result = run(made(tmp_path, f"echo {always}; {script}", words=EVERY, internal="[125]"), "disk:full@0")
    assert result.failed == [UNNAMED], result.to_json()
    assert f"does not name what was exhausted, but: {always or fails}: " in result.findings[0].detail


def test_a_word_that_each_run_but_the_first_says_names_nothing(tmp_path: Path) -> None:
    again = "[ ! -e /var/lib/seen ] || echo there was no space left; : > /var/lib/seen; "
    script = again + STEPS.format(fails="{{ rm -r $d; echo it failed; exit 125; }}").replace("> $d", "2>&- > $d")
    result = run(made(tmp_path, script, words=EVERY, internal="[125]"), "disk:full@0")
    assert result.failed == [UNNAMED], result.to_json()


def test_an_error_that_names_every_resource_names_none(tmp_path: Path) -> None:
    script = STEPS.format(
        fails="{{ rm -r $d; echo no space left or too many open files or cannot allocate memory; exit 125; }}"
    )
    assert run(made(tmp_path, script, words=EVERY, internal="[125]"), "disk:full@0").failed == [UNNAMED]


def test_an_error_behind_much_output_is_read(tmp_path: Path) -> None:
    floods = STEPS.format(
        fails="{{ rm -r $d; head -c 300000 /dev/zero; echo; echo no space left; exit 125; }}"
    ).replace("> $d", "2>&- > $d")
    result = run(made(tmp_path, floods, words=EVERY, internal="[125]"), "disk:full@0")
    assert not result.failed, result.to_json()


def test_a_payload_that_is_run_again_is_not_ok(tmp_path: Path) -> None:
    again = 'shift 2; printf x > /run/s || {{ rm /run/s; "$@"; }}; rm -f /run/s; "$@"'
    result = run(made(tmp_path, again), "disk:full@0")
    assert [finding.outcome for finding in result.findings] == ["false-status"], result.to_json()
    assert "printed all 2 times" in result.findings[0].detail


@pytest.mark.parametrize(("plan", "ours"), [("memory:pressure=90%", "if=/dev/zer[o]"), ("cpu:saturate", "while [:]")])
@pytest.mark.parametrize("then", ["exit 125", ":"])
def test_who_ends_what_exhausts_a_resource_was_not_tested(tmp_path: Path, plan: str, ours: str, then: str) -> None:
    kills = f"""shift 2; found=; for one in /proc/[0-9]*; do
grep -aqs "{ours}" $one/cmdline && kill -9 ${{{{one#/proc/}}}} && found=1; done; [ ! "$found" ] || {then}; exec "$@" """
    result = run(made(tmp_path, kills), plan)
    assert (result.verdict, result.failed) == ("unknown", [MISSED]), result.to_json()


CHANGES = """shift 2; for f in /sys/fs/cgroup/{controller}/{v1} /sys/fs/cgroup/{v2}; do [ ! -e $f ] || break; done
read was < $f; echo {more} > $f; "$@"; code=$?; {needs}; echo "$was" > $f; exit $code"""
# A shell that takes 16 MiB for a moment. With less than some hundred KiB left, none would get as far as to raise it.
TAKES = "( x=a; while [ ${{#x}} -lt 16000000 ]; do x=$x$x; done )"


@pytest.mark.parametrize(
    ("plan", "controller", "v1", "v2", "more", "needs"),
    [
        ("pids:limit=0", "pids", "pids.max", "pids.max", "max", ":"),
        ("memory:full@4M", "memory", "memory.limit_in_bytes", "memory.max", "1073741824", TAKES),
        # The run takes a restored part of a period's quota again.
        ("cpu:quota=1%", "cpu", "cpu.cfs_period_us", "cpu.max", "10000", ":"),
    ],
)
def test_a_limit_that_the_run_raises_and_restores_was_not_tested(
    tmp_path: Path, plan: str, controller: str, v1: str, v2: str, more: str, needs: str
) -> None:
    raises = CHANGES.format(controller=controller, v1=v1, v2=v2, more=more, needs=needs)
    result = run(made(tmp_path, raises), plan)
    assert (result.verdict, result.failed) == ("unknown", [MISSED]), result.to_json()
    # The same without a change.
    assert MISSED not in run(made(tmp_path, raises.replace("> $f", "> /dev/null")), plan).failed


def test_a_disk_that_the_run_makes_larger_was_not_tested(tmp_path: Path) -> None:
    grows = 'shift 2; [ "$(stat -fc %a /run)" != 0 ] || mount -o remount,size=1M /run; "$@"'
    result = run(made(tmp_path, grows), "disk:full@0")
    assert (result.verdict, result.failed) == ("unknown", [MISSED]), result.to_json()


ALONE = 'shift 2; printf x > /run/s && {{{{ rm /run/s; exec unshare --net "$@"; }}}}; rm -f /run/s; {fails}'


@pytest.mark.parametrize(("fails", "wrong"), [('exec "$@"', True), ("exit 125", False)])
@pytest.mark.parametrize("moment", ["", ",execution"])
def test_a_program_that_is_run_without_its_namespace_for_want_of_room_is_not_ok(
    tmp_path: Path, fails: str, wrong: bool, moment: str
) -> None:
    of = made(tmp_path, ALONE.format(fails=fails), internal="[125]")
    of.path.write_text(of.path.read_text().replace('none = "isolates nothing"', 'namespaces = ["net"]'))
    result = run(load(of.path), f"disk:full@0{moment}")
    # Once the payload runs, it has its namespace.
    wrong = wrong and not moment
    assert [finding.outcome for finding in result.findings] == ["false-status"] * wrong, result.to_json()
    assert not wrong or "was not isolated: its net namespace was that of the outside" in result.findings[0].detail


def test_a_payload_that_runs_again_is_held_once(tmp_path: Path) -> None:
    result = run(made(tmp_path, 'shift 2; "$@" > /dev/null; "$@"'), "fd:limit=100,execution")
    assert not result.findings, result.to_json()
    assert result.endings == {"fd execution": {"clean": 1}}


# Only under a limit of memory; else no number, or one of 19 digits. Without a process.
SHORT = """shift 2; for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do
[ ! -e $f ] || break; done; read m < $f; case $m in max|?????????????*) ;; *) {does} ;; esac; "$@" """
GROWS = "x=a; while :; do x=$x$x; done"
LEAVES = f": > /var/lib/oom; {GROWS}"


@pytest.mark.parametrize(
    ("does", "recover", "outcome", "failed"),
    [
        (GROWS, "", "clean", []),
        (LEAVES, "rm -f /var/lib/oom", "recovered", []),
        (LEAVES, "", "leaked", ["trials that left something for good"]),
        ("kill -9 $$", "", "clean", [CRASHED]),
    ],
    ids=["leaves nothing", "is recovered", "leaks", "kills itself"],
)
def test_a_supervisor_that_the_kernel_kills_for_want_of_memory_did_not_crash_but_what_it_leaves_counts(
    tmp_path: Path, does: str, recover: str, outcome: str, failed: list[str]
) -> None:
    of = made(tmp_path, SHORT.format(does=does), words=EVERY, internal="[125]", recover=recover)
    result = run(of, "memory:full@2M")
    assert result.outcomes[outcome] == 1, result.to_json()
    assert [name for name in result.failed if name != UNNAMED] == failed, result.to_json()
    # Who is killed by the kernel can say nothing; who kills itself could have.
    assert (UNNAMED in result.failed) == ("kill" in does)


@pytest.mark.parametrize(
    ("does", "outcome", "crashed"),
    [
        (f"sleep 60 & kill -9 $!; wait; {GROWS}", "clean", False),
        ("kill -9 0", "unknown", False),
        ("kill -9 $$", "clean", True),
    ],
    ids=["kills another", "kills its group", "kills itself"],
)
def test_without_the_counters_of_the_kernel_a_kill_is_the_target_s_only_if_it_sent_it_to_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, outcome: str, crashed: bool
) -> None:
    # As if the run had removed the cgroup that counts.
    monkeypatch.setattr(Memory, "killed", property(lambda _: False))
    result = run(made(tmp_path, SHORT.format(does=does), internal="[125]"), "memory:full@2M")
    assert result.outcomes[outcome] == 1, result.to_json()
    assert (CRASHED in result.failed) == crashed, result.to_json()


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ("too many open files", [UNNAMED]),
        ("cannot allocate memory", []),
        ("a helper was killed", []),
        ("no space left, too many open files, cannot allocate memory", [UNNAMED]),
    ],
)
def test_an_error_beside_a_kill_by_the_kernel_must_not_name_another_resource(
    tmp_path: Path, said: str, failed: list[str]
) -> None:
    script = SHORT.format(does=f"( {GROWS} ) || {{{{ echo {said}; exit 125; }}}}")
    result = run(made(tmp_path, script, words=EVERY, internal="[125]"), "memory:full@2M")
    assert hit(result) == 1
    assert result.failed == failed, result.to_json()


@pytest.mark.parametrize(("status", "wanted"), [("RE", [BLAMED]), ("IE", [])])
def test_a_status_that_blames_a_program_that_never_ran_is_found(tmp_path: Path, status: str, wanted: list[str]) -> None:
    result = run(with_a_status_file(tmp_path, status), "disk:inodes@0")
    assert result.failed == wanted, result.to_json()
    assert result.exhaustion["statuses"] == {status: 1}


def test_of_an_exit_code_nobody_knows_whose_it_is(tmp_path: Path) -> None:
    result = run(made(tmp_path, STEPS.format(fails="{{ rm -r $d; exit 1; }}")), "disk:full@0")
    assert BLAMED not in {one.name for one in result.criteria}
    assert not result.failed


def test_a_box_that_does_not_work_after_the_release_is_wedged(tmp_path: Path) -> None:
    script = """[ ! -e /var/lib/broken ] || exit 125; shift 2
printf x > /run/s || {{ : > /var/lib/broken; exit 125; }}; rm /run/s; "$@\""""
    result = run(made(tmp_path, script), "disk:full@0")
    assert "wedged" in {finding.outcome for finding in result.findings}
    # Its recovery repairs it.
    assert run(made(tmp_path, script, recover="rm -f /var/lib/broken /run/s"), "disk:full@0").verdict == "clean"


def test_a_recovery_that_needs_room_fails_under_the_limit_and_works_after_the_release(tmp_path: Path) -> None:
    script = STEPS.format(fails="exit 125")
    recover = "printf x > /run/its-log && rm -rf /run/its-log /var/lib/exhaust-test"
    result = run(made(tmp_path, script, recover=recover), "disk:full@0,under")
    assert result.verdict == "clean", result.to_json()
    broken = "touch /var/lib/tried; [ ! -e /var/lib/exhaust-test ] || printf x > /run/its-log; rm -rf /run/its-log"
    assert run(made(tmp_path, script, recover=broken), "disk:full@0,under").verdict == "leaked"


@pytest.mark.parametrize("plan", ["disk:full@1M", "fd:limit=1000"])
def test_a_limit_that_the_target_does_not_reach_is_no_pass(tmp_path: Path, plan: str) -> None:
    result = run(made(tmp_path, WELL), plan)
    assert result.verdict == "unknown"
    assert result.failed == [MISSED]
    assert hit(result) == 0


@pytest.mark.parametrize("plan", ["fd:limit=3", "memory:full@0", "cpu:saturate@high"])
def test_each_resource_can_be_exhausted_and_the_host_goes_on(tmp_path: Path, plan: str) -> None:
    result = run(made(tmp_path, WELL), plan)
    assert hit(result) == 1, result.to_json()
    latency = result.exhaustion["host_latency_ms"]
    assert latency.wakeups >= 1
    assert latency.longest < 2000
    assert result.exhaustion["hit"] == {f"{plan.partition(':')[0]} start": [plan.partition(":")[2]]}


@pytest.mark.parametrize("moment", ["execution", "cleanup"])
def test_a_moment_is_when_the_payload_runs_or_has_ended(tmp_path: Path, moment: str) -> None:
    script = """shift 2; printf x > /run/before || exit 125; "$@"; code=$?
printf x > /run/after || code=125; rm -f /run/before /run/after; exit $code"""
    result = run(made(tmp_path, script), f"disk:full@0,{moment}")
    assert result.exhaustion["statuses"] == {"RE": 1}
    assert result.verdict == "clean", result.to_json()


@pytest.mark.parametrize("moment", ["execution", "cleanup"])
def test_no_process_can_be_started_in_the_place_of_one_that_ends(tmp_path: Path, moment: str) -> None:
    # The payload's end makes room for rmdir(1).
    script = 'shift 2; mkdir /var/lib/exhaust-test; "$@"; code=$?; rmdir /var/lib/exhaust-test; exit $code'
    result = run(made(tmp_path, script), f"pids:limit=0,{moment}")
    assert result.verdict == "leaked", result.to_json()
    assert "/var/lib/exhaust-test" in str(result.findings[0].leaks)


def test_the_live_host_is_never_exhausted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--host: resources are exhausted in arenas only"):
        run(made(tmp_path, WELL), "disk:full@0", host=True)
    with pytest.raises(UsageError, match="no plan of an exhausted resource"):
        run(made(tmp_path, WELL), "normal")


def test_an_adapter_with_words_of_an_unknown_resource_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown resource 'disc'; one of disk, fd"):
        made(tmp_path, WELL, words='{ disc = ["full"] }')
    with pytest.raises(UsageError, match="disk: give words"):
        made(tmp_path, WELL, words='{ disk = [""] }')


# It makes 201 trials.
@pytest.mark.slow
def test_refbox_fails_honestly_under_every_limit() -> None:
    result = run_campaign(Exhaust(), load("refbox"), ExhaustOptions())
    assert result.verdict == "clean", result.to_json()
    assert not result.failed
    assert hit(result) >= 60
