"""`leakcheck stress` tells right statuses from wrong ones, whose residue it is, and what hangs."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from made import LEAKCHECK, Calls, failed, target
from waiting import PATIENCE, wait_for_runs

from leakcheck.campaigns import Result, Stress, StressOptions
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.stress_findings import _replay
from leakcheck.errors import StoppedError, TargetError, UsageError
from leakcheck.submissions import Mix, parse_specs
from leakcheck.targets import Target, load
from leakcheck.trials.executor import Ui

if TYPE_CHECKING:
    from leakcheck.trials.record import Record

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

STRESS = [*LEAKCHECK, "stress"]
SETTLE = 0.1


def run(made: Target, specs: str = "", **options: Any) -> Result:
    options = {"settle": SETTLE, "specs": parse_specs(specs) if specs else (), **options}
    return run_campaign(Stress(), made, StressOptions(**options))


def criteria(campaign: Result) -> dict[str, bool | None]:
    return {one.name: one.passed for one in campaign.criteria}


def test_a_mix_on_a_target_that_leaves_nothing_is_clean_with_a_record_of_each(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"', more="behaviours_not = { ignore_sigterm = 'its timeout sends no SIGKILL' }")
    mix = Mix.parse("OK=70,TLE=20,RE=10")
    campaign = run(made, submissions=40, mix=mix, languages=["python"], concurrency=8, seed=5)
    assert (campaign.verdict, failed(campaign), campaign.outcomes) == ("clean", [], {"clean": 40}), campaign.findings
    assert {status: sum(counts.values()) for status, counts in campaign.endings.items()} == {
        "OK": 28,
        "RE": 4,
        "TLE": 8,
    }
    assert [record.id for record in campaign.records] == list(range(40))
    for record in campaign.records:
        assert (record.status, record.right, record.left) == (record.expect, True, [])
        assert record.wall_ms > 0
        assert record.queued_ms >= 0
        assert record.cpu_ms is not None
        assert 0 <= record.box < 8
        assert (record.round, record.settle_ms >= 0) == (1, True)
    assert sum(one.cpu_ms or 0 for one in campaign.records) > 0


def test_the_same_seed_gives_the_same_submissions(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    mix = Mix.parse("OK=80,RE=20")
    specs = [
        [one.spec for one in run(made, submissions=10, mix=mix, languages=["python"], seed=seed).records]
        for seed in (1, 1, 2)
    ]
    assert specs[0] == specs[1] != specs[2]


def test_a_wrong_status_is_a_failed_criterion_with_a_replay_line(tmp_path: Path) -> None:
    # Says that all is well, whatever the program did.
    campaign = run(target(tmp_path, '"$@"; exit 0'), "python/hello python/exit", submissions=6)
    assert failed(campaign) == ["wrong statuses"]
    assert campaign.outcomes == {"clean": 3, "false-status": 3}
    (finding,) = campaign.findings
    assert (finding.outcome, finding.ending, finding.trials) == ("false-status", "RE", 3)
    assert finding.detail.startswith("status OK, not RE")
    words = shlex.split(finding.replay)
    assert words[:2] == ["leakcheck", "stress"]
    assert words[words.index("--submission") + 1].startswith("python/exit")


def test_what_one_kind_of_submission_leaves_is_put_down_to_it_among_many_at_once(tmp_path: Path) -> None:
    script = 'case "$*" in *" memory "*) mktemp /var/lib/litter-XXXXXX >/dev/null;; esac; exec "$@"'
    campaign = run(
        target(tmp_path, script), "python/hello python/memory python/exit python/output", submissions=48, concurrency=6
    )
    assert campaign.verdict == "leaked"
    assert failed(campaign) == ["leaks of kind file"]
    (finding,) = campaign.findings
    assert (finding.outcome, finding.trials) == ("leaked", 12)
    assert finding.specs[0].startswith("python/memory")
    assert "of one submission's kind" in finding.detail


def test_the_replay_line_of_a_leak_shows_it_again(tmp_path: Path) -> None:
    made = target(tmp_path, 'case "$*" in *" memory "*) (: >/var/lib/litter-$$);; esac; exec "$@"')
    (finding,) = run(made, "python/hello python/memory", submissions=12).findings
    again = subprocess.run(
        [*LEAKCHECK, *shlex.split(finding.replay)[1:], "--settle", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert again.returncode == 1
    assert json.loads(again.stdout)["findings"][0]["id"] == finding.id


def test_a_process_left_behind_is_known_by_the_mark_in_its_environment(tmp_path: Path) -> None:
    script = 'case "$*" in *"py exit "*) setsid sleep 300 >/dev/null 2>&1 & ;; esac; exec "$@"'
    campaign = run(target(tmp_path, script), "python/hello python/exit", submissions=10)
    assert failed(campaign) == ["leaks of kind process"]
    for record in campaign.records:
        assert bool(record.left) == ("/exit" in record.spec), record


def test_what_a_later_run_takes_away_again_is_recovered_and_no_failure(tmp_path: Path) -> None:
    # The file of one run is removed by the next but one.
    script = 'rm -f /var/lib/old-*; mktemp /var/lib/old-XXXXXX >/dev/null; exec "$@"'
    made = target(tmp_path, script, recover="rm -f /var/lib/old-*")
    campaign = run(made, "python/hello", submissions=210, concurrency=2)
    recovered = {one.name: one.measured for one in campaign.criteria}["recovered residue"]
    assert recovered > 0
    assert all(finding.outcome == "recovered" for finding in campaign.findings if "/old-" in str(finding.leaks))


@pytest.mark.slow  # Two full arenas; the class is shown of `leaks`, too.
def test_what_there_is_never_more_of_is_bounded_and_no_failure(tmp_path: Path) -> None:
    # One that the last run left is always there, under another name each time.
    made = target(tmp_path, 'rm -f /var/lib/last-*; mktemp /var/lib/last-XXXXXX >/dev/null; exec "$@"')
    campaign = run(made, "python/hello", submissions=450, concurrency=1)
    assert (campaign.verdict, failed(campaign)) == ("clean", []), campaign.findings
    assert "bounded" in {finding.outcome for finding in campaign.findings}


def test_what_the_first_run_in_each_box_leaves_is_told_and_no_leak(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'mkdir -p /var/lib/made; exec "$@"'), "python/hello", submissions=4)
    assert (campaign.verdict, failed(campaign)) == ("clean", [])
    assert [(one.kind, one.labels) for one in campaign.first_run] == [("file", ["dir /var/lib/made"])]


def test_the_arenas_descriptors_are_closed_when_the_campaign_is_over(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    run(made, "python/hello", submissions=4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run(made, "python/hello", submissions=4)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.slow  # Several full arenas.
def test_concurrency_goes_on_while_an_arena_is_looked_at(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    campaign = run(made, "python/hello", submissions=450, concurrency=4)
    assert campaign.verdict == "clean"
    assert campaign.timing_ms["look"] > 0
    assert {1, 2, 3} <= {one.round for one in campaign.records}
    # Sampled at each end of a submission: how many others ran.
    spans = [(one.ended_s - one.wall_ms / 1000, one.ended_s) for one in campaign.records]
    inner = spans[10:-10]
    others = [sum(start < end < stop for start, stop in spans) for _, end in inner]
    assert sorted(others)[len(others) // 20] >= 2, "while one of two arenas empties the other takes its place"


def test_the_queue_is_bounded_and_its_depth_is_told(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    campaign = run(made, "python/hello", submissions=40, concurrency=2, queue=3)
    depth = next(one for one in campaign.criteria if one.name == "queue depth")
    assert (depth.passed, depth.limit) == (True, 3)
    assert 1 <= depth.measured <= 3


def test_a_box_whose_recovery_fails_is_a_clean_up_failure(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'exec "$@"', recover="exit 7"), "python/hello", submissions=4, concurrency=2)
    assert failed(campaign) == ["clean-up failures"]


def test_a_target_that_holds_itself_for_unfit_fails_the_criterion(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"', more="health = ['/bin/sh', '-c', 'echo box 3 is quarantined; exit 1']")
    assert failed(run(made, "python/hello", submissions=4)) == ["boxes out of service"]


def test_a_run_that_outlives_its_limit_is_a_hang_with_the_stacks_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakcheck.trials.runner.GRACE", 1.0)
    made = target(tmp_path, 'case "$*" in *"py exit "*) exec sleep 600;; esac; exec "$@"')
    campaign = run(made, "python/hello python/exit@wall=1", submissions=2, concurrency=1)
    assert "deadlocks and hangs" in failed(campaign)
    assert campaign.verdict == "unknown"
    (stall,) = campaign.stalls
    assert "a run outlived its limit" in stall
    assert re.search(r"process \d+ \(sleep\), state S", stall)
    assert campaign.records[1].status == "none"


def test_a_status_that_the_target_cannot_tell_is_refused_before_anything_runs(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    with pytest.raises(UsageError, match="cannot report MLE"):
        run(made, submissions=10, mix=Mix.parse("OK=90,MLE=10"))
    with pytest.raises(UsageError, match="cannot report MLE; it reports OK, TLE, RE"):
        run(made, submissions=10, mix=Mix.parse("MLE=1,OK=0"))
    with pytest.raises(UsageError, match="cannot report MLE"):
        run(made, "python/allocate")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"submissions": 0}, "--submissions 0: give 1"),
        ({"duration": -1.0}, "--duration -1.0: give seconds above 0"),
        ({"duration": float("nan")}, "--duration nan: give seconds above 0"),
        ({"concurrency": 0}, "--concurrency 0: give 1 to 1000"),
        ({"queue": -1}, "--queue -1: give 1"),
        ({"settle": 61}, "--settle 61: give seconds"),
        ({"languages": ["cobol"]}, "--languages 'cobol': one of "),
        ({"specs": parse_specs("python/hello"), "languages": ["python"]}, "--submission: cannot be combined with"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        StressOptions(**options).check()


def test_a_duration_ends_the_campaign_and_what_runs_then_is_finished(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'exec "$@"'), "python/hello", duration=1.0, concurrency=2)
    assert campaign.trials == campaign.wanted > 2
    assert campaign.outcomes == {"clean": campaign.trials}


def test_stop_gives_the_result_of_those_made(tmp_path: Path) -> None:
    seen: list[Record] = []
    campaign = run_campaign(
        Stress(),
        target(tmp_path, 'exec "$@"'),
        StressOptions(specs=parse_specs("python/hello"), submissions=10_000, settle=SETTLE),
        recording=Calls(seen.append),
        stop=lambda: len(seen) >= 20,
    )
    assert campaign.interrupted
    assert 20 <= campaign.trials < 60
    with pytest.raises(StoppedError, match="before the first submission"):
        run_campaign(
            Stress(), target(tmp_path, 'exec "$@"'), StressOptions(specs=parse_specs("python/hello")), stop=lambda: True
        )


def test_without_a_target_it_is_refbox() -> None:
    done = subprocess.run(
        [*STRESS, "--submission", "python/hello", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["target"]) == (0, "refbox")


def test_ctrl_c_prints_the_result_so_far_and_leaves_nothing(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    words = ["--target", str(made.path), "--submission", "python/hello", "--submissions", "100000", "--json"]
    out = tmp_path / "out"
    with out.open("w") as output, (tmp_path / "err").open("w") as errors:
        process = psutil.Popen([*STRESS, *words], stdout=output, stderr=errors)
        wait_for_runs(process.pid, "timeout", 8)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    result = json.loads(out.read_text())
    assert result["interrupted"]
    assert result["trials"] == len(result["records"])
    assert "interrupted: waiting for" in (tmp_path / "err").read_text()


def test_a_target_that_tells_every_status_by_a_file_is_held_to_them(tmp_path: Path) -> None:
    # A judge of twenty lines of shell: rlimits, and what it says in a file.
    path = tmp_path / "judge.toml"
    path.write_text(
        r"""
name = "judge"
summary = "a judge of shell"
launch = ["/bin/sh", "-c", '''
out=$1; wall=$2; shift 2
timeout -k 1 "$wall" "$@" >/dev/null 2>&1; code=$?
case $code in 0) s=OK;; 124|137) s=TLE;; *) s=RE;; esac
printf '%s: %s\nexit: %s\n' status "$s" "$code" >"$out"
''', "judge", "{work}/result", "{wall}", "{program}"]
probe = { none = "isolates nothing" }
[status]
source = "meta"
file = "{work}/result"
status = "status"
statuses = { OK = "OK", TLE = "TLE", RE = "RE" }
"""
    )
    campaign = run(load(path), "python/hello python/exit python/sleep@wall=0.3 python/segv", submissions=16)
    assert failed(campaign) == [], campaign.findings


def test_the_first_run_ever_makes_the_cache_that_its_boxes_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = (
        target(tmp_path, 'ls "$0" >/dev/null || exit 9; exec "$@"').path.read_text().replace("'sh',", "'{bundle}',")
    )
    (tmp_path / "made.toml").write_text(bundle)
    assert run(load(tmp_path / "made.toml"), "python/hello").verdict == "clean"


def test_what_cannot_be_told_ends_the_campaign_and_nothing_hangs(tmp_path: Path) -> None:
    class Lost(Ui):
        def made(self, trial: Any, count: int) -> None:
            raise BrokenPipeError(f"nobody reads of {type(trial).__name__} {count}")

    options = StressOptions(
        specs=parse_specs("python/hello"), submissions=10_000, concurrency=2, queue=1, settle=SETTLE
    )
    campaign = run_campaign(Stress(), target(tmp_path, 'exec "$@"'), options, Lost())
    assert (campaign.error, campaign.verdict) == ("nobody reads of Record 1", "unknown")
    assert campaign.trials <= 4


def test_a_stall_that_cannot_be_told_still_ends_the_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRACE", "_STALLED"):
        monkeypatch.setattr(f"leakcheck.trials.shared.{name}", 0.5)

    class Lost(Ui):
        def log(self, text: str) -> None:
            if "nothing has ended" in text:
                raise BrokenPipeError("nobody reads")

    made = target(tmp_path, 'case "$*" in *"py exit "*) exec sleep 20;; esac; exec "$@"')
    options = StressOptions(specs=parse_specs("python/hello python/exit@wall=1"), concurrency=1, settle=SETTLE)
    campaign = run_campaign(Stress(), made, options, Lost())
    assert "deadlocks and hangs" in failed(campaign)
    assert campaign.error == "nobody reads"


def test_once_the_duration_is_over_what_waits_is_not_begun(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    campaign = run(made, "python/sleep@wall=0.6", duration=0.9, concurrency=1, queue=50)
    assert campaign.trials <= 2


def test_of_a_few_submissions_no_pace_is_asked_as_with_a_replay_line(tmp_path: Path) -> None:
    campaign = run(target(tmp_path, 'sleep 0.3; exec "$@"'), "c/hello", submissions=2, concurrency=1)
    assert campaign.failed == []


def test_what_goes_wrong_only_now_and_then_is_replayed_under_load(tmp_path: Path) -> None:
    odd = "mkdir /var/lib/odd 2>/dev/null && exit 1; rmdir /var/lib/odd"
    script = f'case "$*" in *" hello "*) {odd};; esac; exec "$@"'
    campaign = run(target(tmp_path, script), "python/hello", submissions=8, concurrency=1)
    wrong = next(finding for finding in campaign.findings if finding.outcome == "false-status")
    assert wrong.replay.endswith("--submission python/hello --submissions 8 --concurrency 1")


def test_the_replay_line_of_a_whole_campaign_has_its_submissions_and_duration(tmp_path: Path) -> None:
    options = StressOptions(specs=parse_specs("python/hello c/exit"), duration=90, concurrency=3)
    line = _replay(target(tmp_path, 'exec "$@"'), options, [])
    assert line.endswith("--duration 90 --seed 0 --submission 'python/hello c/exit' --concurrency 3")


def test_a_target_that_wrote_no_status_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = target(tmp_path, "echo box 7 is out of paper >&2; exit 2").path
    path.write_text(
        path.read_text().replace(
            "{ timeout = [124] }",
            '{ source = "json", file = "{work}/r", status = "v", statuses = { OK = "OK" } }',
        )
    )
    with pytest.raises(TargetError, match=r"no such file.*out of paper"):
        run(load(path), "python/hello")


def test_a_compiler_that_is_missing_or_fails_is_told_on_one_line(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    compiler = tmp_path / "bin/g++"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "suite.c:1: error: no" >&2\nexit 1\n')
    compiler.chmod(0o755)
    for directory, why in ((compiler.parent, "compile cpp, .*suite.c:1: error: no"), (tmp_path, "no g\\+\\+ on PATH")):
        done = subprocess.run(
            [*STRESS, "--target", str(made.path), "--submission", "python/hello cpp/hello"],
            env={"PATH": str(directory), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert re.search(why, done.stderr)


def test_the_old_plan_option_is_read_with_a_warning_that_names_the_new_one() -> None:
    words = ["--target", "bwrap", "--plan", "cobol/hello"]
    done = subprocess.run([*STRESS, *words], capture_output=True, text=True, timeout=60, check=False)
    warning, error = done.stderr.splitlines()
    assert warning == "leakcheck: warning: stress: --plan is now called --submission"
    assert error.startswith("leakcheck: submission 'cobol/hello': unknown language")
    assert done.returncode == 2


def test_languages_that_name_none_are_refused_instead_of_the_default_being_taken(tmp_path: Path) -> None:
    words = ["--target", str(target(tmp_path, 'exec "$@"').path), "--languages", ","]
    done = subprocess.run([*STRESS, *words], capture_output=True, text=True, timeout=60, check=False)
    said = "leakcheck: --languages ',': names no language; omit it for the default\n"
    assert (done.returncode, done.stderr) == (2, said)
