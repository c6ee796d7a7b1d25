"""`leakcheck leaks` tells silent clean-ups, damage, targets that do not end and missing statuses as what they are."""

import os
from pathlib import Path
from typing import Any

import pytest
from made import target

from injectors import parse
from leakcheck.campaigns import Leaks, LeaksOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.report import Command, Leak
from leakcheck.targets import Target, load
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.live_host import LiveHost
from leakcheck.trials.remnant import runs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

# Makes a directory of its box's name, which it removes at the end, as does the next run with that name.
BOX = 'rm -rf "/opt/of-$0"; mkdir "/opt/of-$0"; "$@"; c=$?; rmdir "/opt/of-$0"; exit $c'
KILLED = "forced:freeze@300ms,sleeping"


def run(made: Target, plan: str, iterations: int = 1, **options: Any) -> Result:
    return run_campaign(Leaks(), made, LeaksOptions(iterations=iterations, plan=parse(plan), settle=0.1, **options))


def left(campaign: Result) -> set[tuple[str, str, str, str]]:
    return {(one.kind, one.class_, one.by, one.stage) for finding in campaign.findings for one in finding.leaks}


def named(tmp_path: Path, script: str, **fields: str) -> Target:
    """Make a target whose script has the box's name as ``$0``."""
    path = target(tmp_path, script, **fields).path
    path.write_text(path.read_text().replace("'sh',", "'{name}',"))
    return load(path)


def test_a_recovery_that_reports_success_and_leaves_what_the_next_run_of_that_name_removes_is_silent(
    tmp_path: Path,
) -> None:
    campaign = run(named(tmp_path, BOX, recover="true"), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"silent": 1}), campaign.findings
    assert ("file", "orphaned", "next run", "run") in left(campaign)
    assert campaign.findings[0].recovery == [Command(argv=["/bin/sh", "-c", "true"], exit=0)]
    assert "runs or recoveries that reported success and left something" in campaign.failed


def test_what_only_the_next_submission_leaves_is_found_though_the_kill_left_nothing(tmp_path: Path) -> None:
    # The warm-up is its first run, the killed one the second.
    counts = 'n=$(cat /opt/n 2>/dev/null || echo 0); echo $((n + 1)) >/opt/n; [ $n -lt 2 ] || : >/opt/left-$$; "$@"'
    campaign = run(target(tmp_path, counts), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"leaked": 1}), campaign.findings
    assert {(kind, stage) for kind, _, _, stage in left(campaign)} == {("file", "next run")}


def test_where_boxes_are_used_again_the_next_run_recovers(tmp_path: Path) -> None:
    campaign = run(named(tmp_path, BOX, recover="true", more='box = "reused"'), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"recovered": 1}), campaign.findings
    assert ("file", "reclaimable", "next run", "run") in left(campaign)


@pytest.mark.slow  # With a recovery it is shown above.
def test_without_a_recovery_what_only_the_next_run_of_that_name_removes_is_leaked(tmp_path: Path) -> None:
    campaign = run(named(tmp_path, BOX), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"leaked": 1}), campaign.findings


def test_what_is_made_once_for_each_name_grows_where_names_are_fresh(tmp_path: Path) -> None:
    campaign = run(named(tmp_path, 'mkdir -p "/opt/of-$0"; exec "$@"'), "normal")
    assert (campaign.verdict, left(campaign)) == ("leaked", {("file", "growing", "", "run")})


def test_a_recovery_that_removes_all_is_no_silent_one(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, BOX, recover="rm -rf /opt/of-sh"), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"recovered": 1}), campaign.findings


def test_what_a_recovery_does_to_the_hosts_files_is_damage(tmp_path: Path) -> None:
    does = "chmod 0600 /etc/issue; rm -f /etc/issue.net; echo x >>/etc/hosts; chown 1 /etc; rm -rf /etc/cron.d"
    campaign = run(target(tmp_path, 'exec "$@"', recover=does), "forced:supervisor@2000ms")
    assert campaign.verdict == "leaked"
    (damage,) = [one for one in campaign.findings[0].leaks if (one.class_, one.stage) == ("damaged", "recovery")]
    assert {"changed dir /etc", "changed file /etc/hosts", "changed file /etc/issue", "deleted dir /etc/cron.d"} <= set(
        damage.labels
    )
    assert "trials that damaged what was there before" in campaign.failed


def test_the_same_damage_by_every_run_is_found_at_the_first_one(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'chmod 0600 /etc/issue; exec "$@"'), "normal")
    assert campaign.verdict == "leaked"
    assert left(campaign) == {("file", "damaged", "", "first run")}
    assert campaign.findings[0].replay.endswith("--plan normal --iterations 1 --settle 0.1")


def test_damage_by_the_preparation_of_a_box_is_found(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'exec "$@"', prepare="rm -f /etc/issue"), "normal")
    assert (campaign.verdict, left(campaign)) == ("leaked", {("file", "damaged", "", "first run")})


REMOVES = "finish = [['/bin/sh', '-c', 'rmdir /opt/for-$0', '{name}']]"


def test_what_a_killed_run_leaves_of_its_preparation_for_a_name_that_is_never_used_again_is_leaked(
    tmp_path: Path,
) -> None:
    prepare = 'mkdir -p "/opt/for-$0"'
    campaign = run(named(tmp_path, 'exec "$@"', prepare=prepare, more=REMOVES), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"leaked": 1}), campaign.findings
    assert left(campaign) == {("file", "orphaned", "next run", "run")}
    campaign = run(named(tmp_path, 'exec "$@"', prepare=prepare, more=REMOVES), "normal")
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"clean": 1}), campaign.findings
    campaign = run(named(tmp_path, 'exec "$@"', prepare=prepare), "normal")
    assert (campaign.verdict, left(campaign)) == ("leaked", {("file", "growing", "", "run")})


def test_damage_by_a_run_stays_damage_however_often_it_is_done_again(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'echo "# $$" >>/etc/hosts; exec "$@"', recover="true"), "normal")
    assert ("file", "damaged", "", "run") in left(campaign), campaign.findings
    assert not any(class_ == "bounded" for _, class_, _, _ in left(campaign))


def test_what_is_put_right_by_the_recovery_is_recovered(tmp_path: Path) -> None:
    script = 'mv /etc/issue /opt/issue; "$@"; c=$?; mv /opt/issue /etc/issue; exit $c'
    made = target(tmp_path, script, recover="[ ! -e /opt/issue ] || mv /opt/issue /etc/issue")
    campaign = run(made, KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("clean", {"recovered": 1}), campaign.findings


def test_a_target_may_change_what_its_adapter_declares_as_its_own(tmp_path: Path) -> None:
    script = 'echo "$$" >/etc/issue; rm -rf /etc/cron.d; exec "$@"'
    more = 'state = ["/etc/issue", "/etc/cr*"]'
    campaign = run(target(tmp_path, script, more=more), "normal")
    assert campaign.verdict == "clean", campaign.findings
    assert "damaged" not in {class_ for _, class_, _, _ in left(campaign)}


def test_a_target_that_does_not_end_is_told_as_that_and_not_as_what_our_kill_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakcheck.trials.runner.GRACE", 1.0)
    # Waits for a grandchild that holds its pipe, with a directory that it would remove.
    hangs = '"$@"; c=$?; [ $c = 124 ] && sleep 600 & wait $!; exit $c'
    script = f"d=$(mktemp -d /srv/run-XXXXXX); out=$({hangs}); c=$?; rmdir $d; exit $c"
    campaign = run(target(tmp_path, script), "timeout")
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"wedged": 1}), campaign.findings
    (finding,) = campaign.findings
    assert finding.leaks == []
    assert "did not end by its wall limit of 0.1 s; ended by leakcheck after 1 s" in finding.detail
    assert "wrong statuses" in campaign.failed


def test_a_run_without_a_status_has_a_false_status_also_where_something_leaked(tmp_path: Path) -> None:
    script = 'mktemp /srv/litter-XXXXXX; "$@"; c=$?; [ $c = 3 ] || echo v:$c >"$0/r"; exit $c'
    path = target(tmp_path, script).path
    status = '{ source = "meta", file = "{work}/r", status = "v", statuses = { 0 = "OK" } }'
    text = path.read_text().replace("{ timeout = [124] }", status).replace("'sh',", "'{work}',")
    path.write_text(text)
    campaign = run(load(path), "crash:exit")
    assert (campaign.verdict, campaign.outcomes) == ("leaked", {"false-status": 1})
    measured = {one.name: one.measured for one in campaign.criteria}
    assert (measured["wrong statuses"], measured["trials that left something for good"]) == (1, 1)
    # Not the one that the warm-up run wrote.
    assert "r: empty; the target ended with 3" in campaign.findings[0].detail


def test_a_killed_run_that_reports_ok_has_a_false_status(tmp_path: Path) -> None:
    path = target(tmp_path, 'echo v:0 >"$0/r"; exec "$@"').path
    status = '{ source = "meta", file = "{work}/r", status = "v", statuses = { 0 = "OK" } }'
    path.write_text(path.read_text().replace("{ timeout = [124] }", status).replace("'sh',", "'{work}',"))
    campaign = run(load(path), KILLED)
    assert (campaign.verdict, campaign.outcomes) == ("unknown", {"false-status": 1}), campaign.findings
    assert "status OK, not TLE" in campaign.findings[0].detail


@pytest.mark.parametrize(("state", "lives"), [("S", True), ("R", True), ("Z", False), ("X", False)])
def test_a_zombie_is_no_process_that_the_next_submission_ran_beside(state: str, lives: bool) -> None:
    assert runs(Leak(kind="process", class_="held", label="x", evidence={"resource": {"state": state}})) == lives
    assert not runs(Leak(kind="file", class_="orphaned", label="x"))


def test_what_is_left_in_the_boxs_directory_is_seen_where_the_target_covers_tmp(tmp_path: Path) -> None:
    script = (
        'exec unshare -m sh -c "mount -t tmpfs x /tmp && mktemp $0/litter-XXXXXX >/dev/null && exec \\"\\$@\\"" sh "$@"'
    )
    path = target(tmp_path, script).path
    path.write_text(path.read_text().replace("'sh',", "'{work}',"))
    campaign = run(load(path), "normal")
    assert campaign.verdict == "leaked"
    assert ("file", "growing", "", "run") in left(campaign)


def test_a_boxs_directory_is_in_no_place_that_sandboxes_cover() -> None:
    with LiveHost(0) as host:
        places = [ArenaHost.work, host.work]
    covered = [Path(place) for place in ("/tmp", "/var/tmp", "/run", "/dev", "/home", "/root")]
    assert not any(place.is_relative_to(cover) for place in places for cover in covered)
    assert not host.work.parent.exists()
