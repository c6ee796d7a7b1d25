"""Two results of a campaign compare by finding, and a finding's id is the same in every campaign."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made import LEAKCHECK

from injectors import parse
from leakcheck.campaigns.campaign import Made, TrialOptions
from leakcheck.campaigns.compare import Comparison
from leakcheck.campaigns.compare import lines as compared
from leakcheck.campaigns.findings import fixed, trial_findings
from leakcheck.campaigns.render import lines
from leakcheck.campaigns.result import Criterion, Finding, Result
from leakcheck.submissions import BUILTIN
from leakcheck.targets import load
from leakcheck.trials.case import Case
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.trial import Trial

FORCED = "forced:supervisor@{}ms,sleeping"


def trial(
    *left: tuple[str, str, str], plan: str = FORCED.format(5), outcome: Outcome = "leaked", detail: str = ""
) -> Trial:
    remnants = [Remnant(kind, class_, label, stage="run", place=label) for kind, class_, label in left]
    case = Case(BUILTIN["ok"], parse(plan))
    return Trial(case=case, outcomes=frozenset({outcome} - {"clean"}), left=remnants, detail=detail)


def findings(*trials: Trial, target: str = "bwrap") -> list[Finding]:
    return trial_findings("leaks", Made(load(target), TrialOptions(), list(trials), None, None))


def result(*found: Finding, **fields: Any) -> Result:
    given = {"campaign": "leaks", "target": "made", "version": "", "seed": 1, "wanted": 2, "trials": 2} | fields
    return Result(**given, verdict="leaked", outcomes={}, criteria=[], findings=list(found))


PROCESS = ("process", "orphaned", "process 41 (sleep): sleep 600")
CGROUP = ("cgroup", "held", "cgroup pids /box")
FILE = ("file", "orphaned", "file /var/lib/litter-a1b2c3")


def test_the_same_leak_has_one_id_whatever_its_class_pid_instant_random_name_target_and_ending() -> None:
    (one,) = findings(trial(PROCESS), trial(("file", "orphaned", "x"), plan="normal", outcome="clean"))
    other = trial(("process", "growing", "process 99 (sleep): sleep 600"), plan=FORCED.format(9))
    (two,) = findings(other, target="runc")
    assert one.id == two.id
    assert one.id != findings(trial(FILE))[0].id
    assert one.id == findings(trial(PROCESS, plan="normal"))[0].id


def test_damage_is_another_finding_than_a_new_file() -> None:
    damage, litter = findings(trial(FILE), trial(("file", "damaged", "file /etc/hosts")))
    assert damage.leaks[0].class_ == "damaged"
    assert damage.id != litter.id


def test_a_process_and_what_it_keeps_are_one_finding_with_the_worst_part_first() -> None:
    kept = [CGROUP, ("mount", "held", "mount tmpfs"), ("namespace", "held", "net namespace 4"), ("fd", "held", "fd 3")]
    grows = ("process", "growing", "process 3 (sleep): sleep 600")
    (one,) = findings(trial(*kept, PROCESS), trial(PROCESS), trial(grows, CGROUP))
    assert [(part.kind, part.class_) for part in one.leaks[:2]] == [("process", "growing"), ("process", "orphaned")]
    assert {part.kind for part in one.leaks} == {"process", "cgroup", "mount", "namespace", "fd"}
    assert len(findings(trial(PROCESS), trial(PROCESS, FILE))) == 2, "no process keeps a file"
    assert len(findings(trial(PROCESS), trial(CGROUP))) == 2, "a cgroup alone is not a part of a process"


def test_steady_residue_comes_after_what_stays() -> None:
    noise = ("file", "bounded", "file /var/log/box.log")
    both = findings(*[trial(noise, outcome="bounded")] * 5, trial(PROCESS, noise))
    assert [one.outcome for one in both] == ["leaked", "bounded"]
    assert [part.class_ for part in both[0].leaks] == ["orphaned", "bounded"]


def test_messages_that_differ_only_in_what_varies_are_one() -> None:
    wrong = [
        trial(outcome="false-status", detail=f"status none: /tmp/tmp{name}/x of {pid}")
        for name, pid in (("abcdefgh", 41), ("a1b2c3d_", 7))
    ]
    (one,) = findings(*wrong)
    assert one.trials == 2
    assert fixed("box kXyzAbcD, pid 12, runc") == "box N, pid N, runc"


def test_a_timed_kill_says_that_its_replay_is_chance_and_how_often_it_came() -> None:
    at = [FORCED.format(ms) for ms in range(4)]
    (spread,) = findings(trial(PROCESS, plan=at[0]), *(trial(plan=plan, outcome="clean") for plan in at[1:]))
    assert (spread.trials, spread.tried) == (1, 4)
    assert "by chance only; it came in 1 of 4 kills of this kind (supervisor) at different instants" in spread.chance
    (same,) = findings(trial(PROCESS), trial(PROCESS), trial(outcome="clean"))
    assert same.chance.endswith("it came in 2 of 3 trials at this instant")
    assert same.chance in "\n".join(text.plain for text in lines(result(same)))
    assert not findings(trial(PROCESS, plan="normal"))[0].chance


def test_a_cgroup_of_ten_hierarchies_is_one_line_of_text_and_ten_labels_of_json() -> None:
    names = ["cpu", "memory", "pids", "devices", "freezer", "blkio", "cpuset", "net_cls", "hugetlb", "rdma"]
    (found,) = findings(trial(*[("cgroup", "orphaned", f"cgroup {name} /a box") for name in names]))
    assert len(found.leaks[0].labels) == 10
    shown = [text.plain for text in lines(result(found)) if "/a box" in text.plain]
    assert [text.strip() for text in shown] == ["cgroup /a box (in 10 hierarchies)"]


def test_findings_are_new_gone_or_still_open() -> None:
    (process,), (file,), (cgroup,) = findings(trial(PROCESS)), findings(trial(FILE)), findings(trial(CGROUP))
    found = Comparison.of(result(process, file), result(file, cgroup))
    assert (found.new, found.gone, found.open) == ([cgroup], [process], [file])
    assert not found.warnings


def test_an_open_finding_that_leaves_another_kind_too_is_worse_unless_a_timed_kill_shows_it() -> None:
    for plan, verdict in (("normal", "leaked"), (FORCED.format(5), "clean")):
        (before,), (after,) = findings(trial(PROCESS, plan=plan)), findings(trial(PROCESS, CGROUP, plan=plan))
        found = Comparison.of(result(before), result(after))
        assert not found.new and found.more == {after.id: ["cgroup"]}
        assert "  now also: cgroup" in [text.plain for text in compared(found)]
        assert found.verdict == verdict
        assert Comparison.of(result(after), result(before)).verdict == "clean"


def test_an_open_finding_that_comes_after_another_ending_too_or_has_a_worse_outcome_is_worse() -> None:
    (killed,), (both,) = findings(trial(PROCESS)), findings(trial(PROCESS), trial(PROCESS, plan="normal"))
    tried = {"normal": {}, "forced": {}}
    found = Comparison.of(result(killed, endings=tried), result(both, endings=tried))
    assert (found.more, found.verdict) == ({both.id: ["after normal"]}, "leaked")
    assert Comparison.of(result(both), result(killed)).verdict == "clean"
    untried = Comparison.of(result(killed, endings={"forced": {"clean": 1}}), result(both, endings=tried))
    assert untried.excused == {both.id: "the earlier campaign did not try this ending"}
    (silent,) = findings(trial(PROCESS, outcome="silent"))
    found = Comparison.of(result(killed), result(silent))
    assert (found.more, found.verdict) == ({silent.id: ["silent"]}, "leaked")


@pytest.mark.parametrize("outcome", ["recovered", "bounded", "unknown", "not-reached"])
def test_a_new_finding_that_is_no_failure_is_shown_and_makes_nothing_worse(outcome: Outcome) -> None:
    class_ = "bounded" if outcome == "bounded" else "reclaimable"
    (one,) = findings(trial(("file", class_, "file /x"), outcome=outcome))
    found = Comparison.of(result(), result(one))
    assert (found.new, found.verdict) == ([one], "clean")
    assert f"  not worse: {outcome} is no failure" in [text.plain for text in compared(found)]


def test_parts_that_timed_kills_left_before_are_by_chance_but_another_place_or_ending_is_worse() -> None:
    both = findings(trial(PROCESS, FILE))
    (file,) = findings(trial(FILE), trial(("file", "orphaned", "file /var/lib/litter-c3d4e5"), plan=FORCED.format(9)))
    found = Comparison.of(result(*both), result(file))
    assert (found.new, found.verdict) == ([file], "clean")
    assert found.excused == {file.id: "a timed kill; each part of it was left before"}
    for other in (
        trial(("file", "orphaned", "file /etc/other")),
        trial(("file", "damaged", FILE[2])),
        trial(FILE, plan="normal"),
    ):
        assert Comparison.of(result(*both), result(*findings(other))).verdict == "leaked"
    # A replay line that shows it every time does not make it less of a chance that the campaign saw it.
    exact = msgspec.structs.replace(
        file, chance="", endings=[msgspec.structs.replace(one, chance="") for one in file.endings]
    )
    assert Comparison.of(result(*both), result(exact)).verdict == "clean"
    recovered = findings(trial(PROCESS, ("file", "reclaimable", FILE[2]), outcome="recovered"))
    assert Comparison.of(result(*recovered), result(file)).verdict == "leaked"


def compare(tmp_path: Path, before: str, after: str, *words: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("A", before), ("B", after)):
        (tmp_path / name).write_text(text)
    command = [*LEAKCHECK, "diff", "A", "B", *words]
    return subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_exits_with_1_if_and_only_if_the_later_campaign_is_worse(tmp_path: Path) -> None:
    with_one, without = result(*findings(trial(PROCESS))).to_json(), result().to_json()
    worse, better, same = (
        compare(tmp_path, *two) for two in ((without, with_one), (with_one, without), (with_one,) * 2)
    )
    assert (worse.returncode, better.returncode, same.returncode) == (1, 0, 0)
    assert worse.stderr.startswith("leakcheck: worse: 1 new finding, 0 gone, 0 still open")
    assert better.stderr.startswith("leakcheck: not worse: 0 new findings, 1 gone")
    assert "process 41 (sleep): sleep 600" in better.stderr
    assert "0 gone, 1 still open" in same.stderr
    as_json = compare(tmp_path, without, with_one, "--json", "-o", "out.json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "out.json").read_text())
    assert (json.loads(as_json.stdout)["schema"], as_json.returncode) == ("leakcheck.campaign-diff/1", 1)


@pytest.mark.parametrize(
    ("fields", "warning", "verdict"),
    [
        ({"endings": {"normal": {"clean": 1}}}, "endings that the later campaign did not try: forced", "unknown"),
        ({"interrupted": True}, "the later campaign is incomplete: interrupted", "unknown"),
        ({"coverage": {"key": "no right"}}, "the later campaign did not fully see key", "unknown"),
        ({"target": "runc"}, "another target: made, then runc", "clean"),
        ({"trials": 1}, "fewer trials than before (1, not 2)", "clean"),
    ],
)
def test_what_makes_a_comparison_doubtful_is_a_warning_and_what_may_hide_something_worse_is_no_pass(
    tmp_path: Path, fields: dict[str, Any], warning: str, verdict: str
) -> None:
    before, after = result(endings={"forced": {"clean": 1}}), result(**{"endings": {"forced": {"clean": 1}}} | fields)
    assert Comparison.of(before, after).verdict == verdict
    done = compare(tmp_path, before.to_json(), after.to_json())
    assert done.returncode == (3 if verdict == "unknown" else 0)
    assert warning in done.stderr
    worse = msgspec.structs.replace(after, findings=findings(trial(PROCESS)))
    assert Comparison.of(before, worse).verdict == "leaked", "it is worse in any case"
    if "target" not in fields and "trials" not in fields:
        assert compare(tmp_path, before.to_json(), worse.to_json()).returncode == 1


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ('{"schema": "leakcheck.snapshot/1"}', "give two results of campaigns, two of verify, or two snapshots"),
        ("no json", "give two results of campaigns, two of verify, or two snapshots"),
        ('{"schema": "leakcheck.campaign/1"}', "B: not a campaign's result"),
        ('{"schema": "leakcheck.campaign/9"}', "schema is 'leakcheck.campaign/9', not leakcheck.campaign/1"),
    ],
)
def test_other_input_is_refused_in_one_line(tmp_path: Path, after: str, message: str) -> None:
    done = compare(tmp_path, result().to_json(), after)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line


def test_results_of_two_campaigns_are_refused(tmp_path: Path) -> None:
    done = compare(tmp_path, result().to_json(), result(campaign="stress").to_json())
    message = "leakcheck: results of leaks and of stress: give two of the same campaign\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("w") as file:
        file.truncate(1 << 40)
    command = [*LEAKCHECK, "diff", "huge", "huge"]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "leakcheck: huge: cannot be read: is larger than 512 MiB\n")


def test_allow_rules_are_not_for_campaigns(tmp_path: Path) -> None:
    (tmp_path / "allow.toml").write_text("")
    done = compare(tmp_path, result().to_json(), result().to_json(), "--allow", "allow.toml")
    assert done.returncode == 2
    assert "rules are for snapshots" in done.stderr


def test_a_comparison_names_the_versions() -> None:
    found = Comparison.of(result(version="1.0"), result(version="2.0"))
    assert (found.before, found.after) == ("leaks made (1.0), 2 trials", "leaks made (2.0), 2 trials")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found


def test_a_result_that_is_leaked_or_unknown_without_a_finding_is_not_just_as_good() -> None:
    clean = msgspec.structs.replace(result(), verdict="clean")
    changed = Criterion(name="settings of the machine that changed", passed=False, measured=1, limit=0)
    leaked = msgspec.structs.replace(result(), criteria=[changed])
    found = Comparison.of(clean, leaked)
    assert found.verdict == "leaked"
    assert found.warnings[0].endswith("leaked, the earlier one was not: settings of the machine that changed")
    unreached = Criterion(name="plans that did not fire", passed=False, measured=1, limit=0)
    unknown = msgspec.structs.replace(clean, verdict="unknown", criteria=[unreached])
    for before in (clean, leaked):
        found = Comparison.of(before, unknown)
        assert (found.verdict, "plans that did not fire" in found.warnings[0]) == ("unknown", True)
    assert Comparison.of(unknown, unknown).verdict == "clean"
    assert Comparison.of(leaked, leaked).verdict == "clean"
