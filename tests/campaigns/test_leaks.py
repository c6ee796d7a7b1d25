"""`leakcheck leaks` says of targets whose leaks are known by construction what they leave, and of what class it is."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from made import LEAKCHECK, Calls, target
from waiting import PATIENCE, runs_below, wait_for_runs, wait_until

from injectors import parse
from leakcheck.campaigns import Leaks, LeaksOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.errors import TargetError, UsageError
from leakcheck.targets import Target, load

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

SETTLE = 0.1


def run(made: Target, plan: str, iterations: int = 2, **options: Any) -> Result:
    return run_campaign(Leaks(), made, LeaksOptions(iterations=iterations, plan=parse(plan), settle=SETTLE, **options))


def kill_the_sleepers(pids: list[str], began: float) -> None:
    """Kill those of the processes that are sleep(1) and began after `began`: a number may be another's by now."""
    for pid in map(int, pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.name() == "sleep" and process.create_time() >= began - 1:
                process.kill()


def left(campaign: Result) -> set[tuple[str, str]]:
    return {(one.kind, one.class_) for finding in campaign.findings for one in finding.leaks}


def test_a_target_that_leaves_nothing_is_clean_however_it_ends(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    campaign = run_campaign(
        Leaks(), made, LeaksOptions(iterations=12, endings=["normal", "timeout", "crash"], settle=SETTLE)
    )
    assert campaign.verdict == "clean", campaign.findings
    assert campaign.endings == {name: {"clean": 4} for name in ("normal", "timeout", "crash")}
    assert campaign.outcomes == {"clean": 12}
    assert all(criterion.passed is not False for criterion in campaign.criteria)


def test_a_file_more_with_each_run_is_growing(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'mktemp /var/lib/litter-XXXXXX >/dev/null; exec "$@"'), "normal")
    assert (campaign.verdict, left(campaign)) == ("leaked", {("file", "growing")})
    assert [one.class_ for one in campaign.first_run] == ["growing"]


def test_a_file_that_each_run_recreates_in_the_same_place_is_bounded(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'rm -f /var/lib/litter; echo $$ >/var/lib/litter; exec "$@"'), "normal")
    assert (campaign.outcomes, left(campaign)) == ({"bounded": 2}, {("file", "bounded")})
    assert campaign.verdict == "clean", "there is never more of it than one run leaves"


def test_what_only_the_first_run_makes_is_told_apart_from_leaks(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'mkdir -p /var/lib/litter; exec "$@"'), "normal")
    assert campaign.verdict == "clean"
    assert [(one.kind, one.class_) for one in campaign.first_run] == [("file", "bounded")]


def test_what_grows_beside_something_bounded_is_told_apart_from_it(tmp_path: Path) -> None:
    script = ': >>/opt/log-bounded; mktemp /opt/grow-XXXXXX >/dev/null; exec "$@"'
    campaign = run(target(tmp_path, script), "normal", iterations=1)
    classes = {(one.class_, label[:13]) for one in campaign.first_run for label in one.labels}
    assert classes == {("bounded", "file /opt/log"), ("growing", "file /opt/gro")}


def test_what_the_recovery_itself_leaves_is_found(tmp_path: Path) -> None:
    plan = "forced:supervisor@2000ms"
    grows = run(target(tmp_path, 'exec "$@"', recover="mktemp /opt/rec-XXXXXX"), plan, iterations=1)
    assert (grows.verdict, left(grows)) == ("leaked", {("file", "growing")})
    stays = run(target(tmp_path, 'exec "$@"', recover=": >>/opt/recovered"), plan, iterations=1)
    assert (stays.verdict, left(stays)) == ("clean", {("file", "bounded")})


@pytest.mark.slow  # Shown by test_outcomes.py with a box of its own.
def test_what_the_next_run_leaves_because_of_a_kill_is_found(tmp_path: Path) -> None:
    # Killed, it leaves its log full, in which no look sees anything; the next run saves such a log for good.
    script = '[ ! -s /opt/log ] || cp /opt/log /opt/saved-$$; echo begun >/opt/log; "$@"; c=$?; : >/opt/log; exit $c'
    campaign = run(target(tmp_path, script), "forced:freeze@300ms,sleeping", iterations=1)
    assert (campaign.verdict, left(campaign)) == ("leaked", {("file", "growing")})
    assert "/opt/saved-" in campaign.findings[0].leaks[0].labels[0]


def test_what_prepare_and_recovery_put_in_the_place_of_another_is_no_residue(tmp_path: Path) -> None:
    made = target(
        tmp_path,
        '[ -e /opt/state ] || : >/opt/state; exec "$@"',
        prepare='ln -sfn usr/bin "$1/bin"',
        recover="rm -f /opt/state; : >/opt/state",
    )
    campaign = run(made, "forced:supervisor@2000ms")
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"clean": 2}), campaign.findings


def test_an_adapters_file_is_written_in_the_arena_wherever_its_path_leads(tmp_path: Path) -> None:
    # /var/run is an absolute link to /run in Debian, and a target can make such a link too.
    name = f"leakcheck-test-{os.getpid()}"
    made = target(
        tmp_path,
        f'test -s /run/{name} && test -s /opt/{name} || exit 99; exec "$@"',
        prepare="ln -sfn /opt /srv/link",
        more=f'[[files]]\npath = "/var/run/{name}"\ntext = "x"\n[[files]]\npath = "/srv/link/{name}"\ntext = "x"',
    )
    assert run(made, "normal", iterations=1).verdict == "clean"
    assert not Path(f"/run/{name}").exists()
    assert not Path(f"/opt/{name}").exists()


def test_a_program_directly_in_tmp_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(f"/tmp/leakcheck-test-{os.getpid()}")
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"/tmp:{os.environ['PATH']}")
    path = target(tmp_path, 'exec "$@"', more=f'needs = {{ binaries = ["{program.name}"] }}').path
    path.write_text(path.read_text().replace("'/usr/bin/timeout'", f"'{{exe:{program.name}}}', '/usr/bin/timeout'"))
    try:
        assert run(load(path), "normal", iterations=1).verdict == "clean"
    finally:
        program.unlink()


def test_a_program_that_is_replaced_during_the_campaign_makes_it_no_campaign_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("LEAKCHECK_TARGETS", str(tmp_path))
    program = tmp_path / "bin" / "updated-sandbox"
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o755)
    made = target(tmp_path, '{exe:updated-sandbox} "$@"', more='needs = { binaries = ["updated-sandbox"] }')

    def update(_: Any) -> None:
        program.write_text(program.read_text() + "# newer\n")

    options = LeaksOptions(iterations=2, endings=("normal",), settle=0.05)
    campaign = run_campaign(Leaks(), made, options, recording=Calls(update))
    assert (campaign.verdict, campaign.complete, campaign.outcomes) == ("unknown", False, {"clean": 2})
    assert campaign.error == f"{program} was replaced during the campaign"


def test_a_recovery_that_fails_with_nothing_left_is_wedged_and_no_leak(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'exec "$@"', recover="exit 5"), "forced:supervisor@2000ms")
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"wedged": 2})
    criteria = {criterion.name: criterion.measured for criterion in campaign.criteria}
    assert criteria["trials that left something for good"] == 0
    assert criteria["recoveries or next submissions that failed"] == 2
    assert criteria["95 % upper bound of the leak rate"] < 1


def test_what_the_recovery_removes_is_reclaimable_and_no_leak(tmp_path: Path) -> None:
    made = target(
        tmp_path, 'mkdir /var/lib/box && "$@"; c=$?; rmdir /var/lib/box; exit $c', recover="rm -rf /var/lib/box"
    )
    campaign = run(made, "forced:supervisor@300ms,sleeping")
    recovered = {(one.kind, one.class_, one.by) for finding in campaign.findings for one in finding.leaks}
    assert ("file", "reclaimable", "recovery") in recovered


def test_a_box_that_is_left_locked_is_wedged(tmp_path: Path) -> None:
    # Stopped first: otherwise the payload could die before the shell, which would then clean up.
    made = target(tmp_path, 'mkdir /var/lib/box || exit 9; "$@"; c=$?; rmdir /var/lib/box; exit $c')
    campaign = run(made, "forced:freeze@300ms,sleeping")
    assert campaign.outcomes == {"wedged": 2}
    assert campaign.verdict == "leaked"
    assert "next submission: status RE, not OK: mkdir: cannot create directory" in campaign.findings[0].detail


def test_a_payload_that_outlives_its_supervisor_is_found(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, '"$@"; exit $?'), "forced:supervisor@300ms,sleeping")
    assert ("process", "growing") in left(campaign)
    # It still runs beside the next submission in that box.
    assert campaign.outcomes == {"wedged": 2}
    assert all("next submission: ran beside process " in finding.detail for finding in campaign.findings)
    assert "trials that left something for good" in campaign.failed


def test_an_edit_of_the_hosts_files_is_found_and_one_that_only_opened_them_is_none(tmp_path: Path) -> None:
    edits = run(target(tmp_path, 'echo "# $$" >> /etc/hosts; rm -f /etc/issue; exec "$@"'), "normal")
    labels = " ".join(label for finding in edits.findings for one in finding.leaks for label in one.labels)
    assert "changed file /etc/hosts" in labels
    # Deleted by the first run already, which the warm-up hides.
    assert any("/etc/issue" in label for one in edits.first_run for label in one.labels)
    opens = run(target(tmp_path, ': >> /etc/hosts; chmod --reference=/etc/hosts /etc/hosts; exec "$@"'), "normal")
    assert opens.verdict == "clean", opens.findings
    assert not opens.first_run


def test_a_wrong_status_is_told_and_no_verdict_of_clean(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, '"$@"; c=$?; [ $c = 3 ] && exit 0; exit $c'), "crash:exit")
    assert campaign.outcomes == {"false-status": 2}
    assert campaign.verdict == "unknown"


def test_a_target_that_does_not_work_is_an_error_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="made: status RE, not OK: it is broken"):
        run(target(tmp_path, "echo it is broken >&2; exit 5"), "normal")


def test_a_target_whose_isolation_is_off_is_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "off.toml"
    text = target(tmp_path, 'exec "$@"').path.read_text()
    path.write_text(text.replace('none = "isolates nothing"', 'namespaces = ["pid"]').replace('"made"', '"off"', 1))
    with pytest.raises(TargetError, match="off: isolation is off: the payload is in the outside's pid namespace"):
        run_campaign(Leaks(), load(path), LeaksOptions(iterations=1))


def test_bubblewrap_leaves_nothing_and_without_die_with_parent_its_payload(tmp_path: Path) -> None:
    # Killed before it has asked for the signal at its parent's death, the inner process of bwrap lives on: so no kills.
    campaign = run_campaign(Leaks(), load("bwrap"), LeaksOptions(iterations=30, endings=["normal", "timeout", "crash"]))
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"clean": 30}), campaign.findings
    assert "bubblewrap" in campaign.version
    path = tmp_path / "without.toml"
    path.write_text(load("bwrap").path.read_text().replace('"--die-with-parent", ', ""))
    without = run(load(path), "forced:supervisor@300ms,sleeping")
    assert without.verdict == "leaked"
    assert ("process", "growing") in left(without)


def test_a_replay_line_shows_the_finding_again(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, '(: >/var/lib/litter-$$); exec "$@"'), "normal", iterations=1)
    words = shlex.split(campaign.findings[0].replay)
    assert words[0] == "leakcheck"
    again = subprocess.run(
        [*LEAKCHECK, *words[1:], "--json"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert again.returncode == 1
    finding = json.loads(again.stdout)["findings"][0]
    assert finding["leaks"][0]["kind"] == "file"
    assert finding["id"] == campaign.findings[0].id, "of the same finding, whatever the counts and names"
    assert words[words.index("--settle") + 1] == str(SETTLE)


def test_a_replay_line_works_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = target(tmp_path, 'mktemp /var/lib/litter-XXXXXX >/dev/null; exec "$@"').path
    monkeypatch.chdir(tmp_path)
    assert f" --target {path} " in run(load(f"./{path.name}"), "normal", iterations=1).findings[0].replay


def test_the_json_keeps_the_contract(tmp_path: Path) -> None:
    made = target(tmp_path, 'mktemp /var/lib/litter-XXXXXX >/dev/null; exec "$@"')
    output = tmp_path / "campaign.json"
    command = [*LEAKCHECK, "leaks", "--target", made.path, "--iterations", "4", "--endings", "normal", "--seed", "7"]
    command += ["--json", "-o", output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(output.read_text()) == json.loads(done.stdout)
    result = json.loads(done.stdout)
    assert (result["schema"], result["campaign"], result["target"]) == ("leakcheck.campaign/1", "leaks", "made")
    assert (result["seed"], result["trials"], result["verdict"]) == (7, 4, "leaked")
    assert {"name", "pass", "measured", "limit"} == set(result["criteria"][0])
    assert {"id", "plan", "outcome", "leaks", "replay"} <= set(result["findings"][0])
    assert {"up", "warm-up", "baseline", "run", "settle", "down"} <= set(result["timing_ms"])


def test_ctrl_c_gives_the_result_so_far_and_leaves_nothing(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    words = ["--target", made.path, "--iterations", "100000", "--endings", "normal", "--jobs", "2", "--json"]
    command = [*LEAKCHECK, "leaks", *words]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        campaign = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        # Fewer than 20 come before the first trial; then each trial has two or three.
        wait_for_runs(campaign.pid, "timeout", 30)
        campaign.send_signal(signal.SIGINT)
        assert campaign.wait(PATIENCE) == 130, (tmp_path / "err").read_text()
    result = json.loads((tmp_path / "out").read_text())
    assert result["interrupted"] is True
    assert 0 < result["trials"] < 100000
    assert re.search(
        r"leakcheck: made: interrupted: waiting for \d+ running trials; press Ctrl-C again to quit now",
        (tmp_path / "err").read_text(),
    )
    assert result["outcomes"] == {"clean": result["trials"]}


def test_ctrl_c_before_the_first_trial_ends_at_once_with_one_line(tmp_path: Path) -> None:
    made = target(tmp_path, 'sleep 6000; exec "$@"')
    command = [*LEAKCHECK, "leaks", "--target", made.path]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as campaign:
        wait_until("the target runs", lambda: runs_below(campaign.pid, ["sleep", "6000"]))
        campaign.send_signal(signal.SIGINT)
        _, said = campaign.communicate(timeout=PATIENCE)
    assert campaign.returncode == 130
    assert said == "leakcheck: made: interrupted before the first trial: no result\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "nosuch"], 2, "unknown target 'nosuch': one of"),
        (["--target", "bwrap", "--iterations", "0"], 2, "--iterations 0: give at least 1"),
        (["--target", "bwrap", "--endings", "normal,odd"], 2, "--endings 'odd': one of normal, timeout, crash, forced"),
        (["--target", "bwrap", "--kill", "me"], 2, "--kill 'me': one of supervisor, tree, freeze"),
        (["--target", "bwrap", "--endings", "forced,forced"], 2, "--endings: names forced twice"),
        (["--target", "bwrap", "--kill", "tree,tree"], 2, "--kill: names tree twice"),
        (["--target", "bwrap", "--kill", "tree", "--plan", "normal"], 2, "--kill --plan: a plan sets the ending of"),
        (["--target", "bwrap", "--endings", "normal", "--plan", "normal"], 2, "--endings --plan: a plan sets"),
        (["--target", "bwrap", "--plan", "odd"], 2, "plan 'odd': no injector for 'odd'; there are cpu, crash"),
        (["--target", "bwrap", "--settle", "-1"], 2, "--settle -1.0: give seconds from 0 to 60"),
        (["--target", "bwrap", "--jobs", "2", "--host"], 2, "--host --jobs: trials on the live host see"),
        (["--target", "/nosuch.toml"], 2, "read adapter /nosuch.toml: no such file"),
    ],
)
def test_bad_input_is_told(arguments: list[str], code: int, message: str) -> None:
    done = subprocess.run(
        [*LEAKCHECK, "leaks", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert message in done.stderr
    assert re.fullmatch(r"leakcheck: .*\n", done.stderr), "one line"


def test_a_missing_program_is_exit_4_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "gone.toml"
    text = target(tmp_path, 'exec "$@"').path.read_text().replace('"made"', '"gone"', 1)
    path.write_text(text + '\nneeds = { binaries = ["no-such-sandbox"], install = "apt-get install it" }\n')
    done = subprocess.run(
        [*LEAKCHECK, "leaks", "--target", path], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "gone: missing: no no-such-sandbox in" in done.stderr
    assert "apt-get install it" in done.stderr


def test_on_the_host_only_what_is_tied_to_the_run_counts_and_reap_removes_it(tmp_path: Path) -> None:
    litter = f"leakcheck-litter-{os.getpid()}-"
    made = target(tmp_path, f'mktemp /tmp/{litter}XXXXXX >/dev/null; sleep 300 & echo $! >>{tmp_path}/pids; exec "$@"')
    neighbour = Path(f"/tmp/{litter}of-a-neighbour")
    (tmp_path / "pids").touch()
    began = time.time()
    output = tmp_path / "campaign.json"
    options = ["--host", "--iterations", "2", "--endings", "normal", "--settle", "0.1", "-o", output]
    try:
        done = subprocess.Popen([*LEAKCHECK, "leaks", "--target", made.path, *options], stderr=subprocess.DEVNULL)
        wait_until("the target runs", (tmp_path / "pids").read_text)
        neighbour.touch()
        assert done.wait() == 1
        result = json.loads(output.read_text())
        kinds = {one["kind"] for finding in result["findings"] for one in finding["leaks"]}
        assert kinds == {"file", "process"}, result["findings"]
        left_before = set(Path("/tmp").glob(f"{litter}*"))
        reap = [*LEAKCHECK, "reap", "--diff", output]
        assert subprocess.run(reap, stdout=subprocess.DEVNULL, check=False).returncode == 0
        assert set(Path("/tmp").glob(f"{litter}*")) == left_before, "without --yes nothing is removed"
        assert subprocess.run([*reap, "--yes"], stdout=subprocess.DEVNULL, check=False).returncode == 0
        left_after = set(Path("/tmp").glob(f"{litter}*"))
        # Where forks are not told (an unprivileged container) the maker of a file is known only while it lives.
        untied = {leak["evidence"]["resource"].get("path") for leak in result["report"]["unattributed"]}
        assert neighbour in left_after
        assert {str(path) for path in left_after - {neighbour}} <= untied, "all that is tied to the runs is gone"
        assert len(left_after) < len(left_before)
    finally:
        # What the runs before the guard's left, the warm-up among them, is tied to none.
        for file in Path("/tmp").glob(f"{litter}*"):
            file.unlink()
        kill_the_sleepers((tmp_path / "pids").read_text().split(), began)


def test_options_are_checked_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="--endings: names none"):
        LeaksOptions(endings=[]).check()
    with pytest.raises(UsageError, match="--jobs 1000"):
        LeaksOptions(jobs=1000).check()


def test_enough_trials_with_the_same_finding_end_the_campaign(tmp_path: Path) -> None:
    made = target(tmp_path, 'sleep 613 & "$@"; exit $?')
    options = LeaksOptions(iterations=30, endings=["normal"], enough=2, jobs=1, settle=SETTLE)
    result = run_campaign(Leaks(), made, options)
    assert (result.trials, result.verdict) == (2, "leaked")
    # Each of them waits for its residue to go, and lets another one start meanwhile.
    options = LeaksOptions(iterations=30, endings=["normal"], enough=2, jobs=2, settle=SETTLE)
    result = run_campaign(Leaks(), made, options)
    assert result.trials <= 3
