"""`leakcheck stress` puts residue down to the submission that evidence names, or says of which ones it can be."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from made import failed, target

from leakcheck.campaigns import Result, Stress, StressOptions
from leakcheck.campaigns import run as run_campaign
from leakcheck.report import Leak
from leakcheck.submissions import parse_specs
from leakcheck.targets import Target, load
from leakcheck.trials.attribution import Attribution, Run, SharedRemnant
from leakcheck.trials.live_host import LiveHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

# Of the two submissions of a test only `exit` leaves something.
GUILTY = 'case "$*" in *"py exit "*) {} ;; esac; exec "$@"'


def run(made: Target, specs: str, **options: Any) -> Result:
    return run_campaign(Stress(), made, StressOptions(settle=0.1, specs=parse_specs(specs), **options))


def blamed(campaign: Result) -> dict[int, str]:
    """Return the behaviour of each submission that left something for sure."""
    return {one.id: one.spec.partition("@")[0] for one in campaign.records if one.left}


@pytest.mark.parametrize("name", ["minijudge-2", "box-3", "made"])
def test_a_random_name_with_a_digit_is_no_box_number(tmp_path: Path, name: str) -> None:
    # Such as mkdtemp draws: minijudge-2r0z names no box.
    litter = f'mkdir "/var/lib/{name}-$((LEAKCHECK_SUBMISSION % 4))r0z$LEAKCHECK_SUBMISSION"'
    made = target(tmp_path, GUILTY.format(litter), name=name)
    campaign = run(made, "python/hello python/exit python/hello", submissions=24, concurrency=4)
    assert failed(campaign) == ["leaks of kind file"]
    assert campaign.outcomes == {"clean": 16, "leaked": 8}, campaign.findings
    assert set(blamed(campaign).values()) == {"python/exit"}


def test_two_kinds_that_leak_at_once_are_both_found_and_each_submission_counts_once(tmp_path: Path) -> None:
    twice = "mktemp -d /var/lib/one-XXXXXXXX; mktemp -d /var/lib/one-XXXXXXXX"
    once = "mktemp -d /opt/two-XXXXXXXX"
    script = f'case "$*" in *"py exit "*) {twice} ;; *" memory "*) {once} ;; esac >/dev/null; exec "$@"'
    campaign = run(
        target(tmp_path, script), "python/hello python/exit python/memory python/hello", submissions=16, concurrency=4
    )
    assert campaign.outcomes == {"clean": 8, "leaked": 8}
    assert set(blamed(campaign).values()) == {"python/exit", "python/memory"}
    measured = {one.name: one.measured for one in campaign.criteria}
    assert measured["leaks of kind file"] == 12
    assert measured["submissions that left something"] == 8


def test_what_leaks_in_one_run_of_ten_is_of_one_of_these(tmp_path: Path) -> None:
    # Alone it leaves nothing, so that no second run tells who it was.
    count = "n=$(cat /opt/n 2>/dev/null || echo 0); echo $((n + 1)) >/opt/n"
    script = count + '; [ $n != 9 ] || mktemp /srv/odd-XXXXXX; exec "$@"'
    campaign = run(target(tmp_path, script), "python/hello", submissions=10, concurrency=1)
    (finding,) = [one for one in campaign.findings if "/srv/odd" in str(one.leaks)]
    assert finding.outcome == "leaked"
    assert "one of these submissions: " in finding.detail or re.search(r"submission \d+$", finding.detail)
    assert campaign.outcomes.get("clean", 0) < 10
    may = [one.id for one in campaign.records if one.may_have_left or one.left]
    assert may, campaign.records
    measured = {one.name: one.measured for one in campaign.criteria}
    found = "submissions that left something", "at most so many others, of those that may have"
    assert sum(measured[name] for name in found) == 1


def test_what_a_process_leaves_that_ended_in_a_later_round_can_be_of_its_submission(tmp_path: Path) -> None:
    def leak(kind: str, resource: dict[str, object]) -> Leak:
        evidence = {"resource": resource}
        return Leak(kind=kind, class_="held", label=kind, key=kind, attribution="scope", evidence=evidence)

    process = SharedRemnant(leak("process", {"pid": 7}), 1, [0], "mark", gone=3)
    made = target(tmp_path, 'exec "$@"')
    attribution = Attribution(made, LiveHost(0), [])
    file = leak("file", {"path": "/srv/late"})
    assert attribution.tied(file, 3, [Run(5, 0, 3)], [process]).runs == [5, 0]
    assert attribution.tied(file, 4, [Run(6, 0, 4)], [process]).runs == [6], "it had ended before that round"


def test_a_late_child_does_not_put_its_litter_on_whoever_runs_by_then(tmp_path: Path) -> None:
    late = "setsid sh -c 'sleep 0.7; mktemp /srv/late-XXXXXX' >/dev/null 2>&1 &"
    made = target(tmp_path, GUILTY.format(late))
    campaign = run(made, "python/exit " + " ".join(["python/hello"] * 15), submissions=16, concurrency=1)
    assert campaign.verdict == "leaked"
    guilty = campaign.records[0]
    assert guilty.left or guilty.may_have_left
    assert not any(one.left for one in campaign.records[1:]), campaign.findings


def test_a_survivor_that_wiped_its_environment_is_known_by_its_session(tmp_path: Path) -> None:
    made = target(tmp_path, GUILTY.format("env -i sleep 300 </dev/null >/dev/null 2>&1 &"))
    campaign = run(made, "python/hello python/exit", submissions=8, concurrency=4)
    assert campaign.outcomes == {"clean": 4, "leaked": 4}, campaign.to_json()
    assert set(blamed(campaign).values()) == {"python/exit"}


def test_a_place_that_the_adapter_declares_as_a_boxs_own_is_of_that_box(tmp_path: Path) -> None:
    # Twice as many boxes as submissions that leak, of which none does when it is run alone.
    script = '[ "$0" = 0 ] || mkdir -p "/opt/state/$0/$$"; exec "$@"'
    path = target(tmp_path, script, more='state = ["/opt/state/{box}"]').path
    path.write_text(path.read_text().replace("'sh',", "'{box}',"))
    campaign = run(load(path), "python/hello", submissions=8, concurrency=4)
    assert campaign.verdict == "leaked"
    for record in campaign.records:
        assert bool(record.left or record.may_have_left) == (record.box != 0), campaign.findings


def test_what_only_a_run_left_that_leakcheck_had_to_end_is_no_leak_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakcheck.trials.runner.GRACE", 1.0)
    script = GUILTY.format("mkdir /srv/of-the-hung; exec sleep 600")
    campaign = run(target(tmp_path, script), "python/hello python/exit@wall=1", submissions=2, concurrency=1)
    assert failed(campaign) == ["clean-up failures", "wrong statuses", "deadlocks and hangs"]
    hung = campaign.records[1]
    assert (hung.status, hung.late, hung.left) == ("none", True, [])
    assert "did not end by its wall limit of 1 s; ended by leakcheck after 2 s" in hung.detail


def test_damage_to_what_was_there_before_is_never_bounded(tmp_path: Path) -> None:
    made = target(tmp_path, 'chmod 0600 /etc/issue; exec "$@"')
    campaign = run(made, "python/hello", submissions=4, concurrency=1)
    assert campaign.verdict == "leaked"
    assert "things damaged that were there before" in failed(campaign)
