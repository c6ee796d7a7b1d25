"""The same leak is one finding, in however many endings it comes; two leaks never are."""

import itertools
import json
import time
from typing import Any

import msgspec
import pytest
from test_compare import CGROUP, FILE, FORCED, PROCESS, findings, result, trial

from leakcheck.campaigns.findings import residue
from leakcheck.campaigns.render import lines
from leakcheck.campaigns.result import Finding, Result
from leakcheck.report import Command, Leak
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.remnant import Remnant, program_of
from leakcheck.trials.similarity import fixed

TERM = "forced:tree@{}ms,sigterm,sleeping"
NOISE = ("file", "bounded", "file /var/log/box.log")
LOCK = ("file", "orphaned", "file /run/box.lock")


def text(*found: Finding) -> list[str]:
    return [line.plain for line in lines(result(*found))]


def test_one_leak_of_three_endings_is_one_finding_that_says_how_often_each_showed_it_the_surest_first() -> None:
    trials = [
        *[trial(FILE, plan=FORCED.format(ms)) for ms in (1, 2)],
        *[trial(plan=FORCED.format(ms), outcome="clean") for ms in (3, 4)],
        trial(FILE, plan=TERM.format(1), outcome="silent"),
        *[trial(FILE, plan="normal")] * 3,
        *[trial(FILE, plan="timeout"), trial(plan="timeout", outcome="clean")],
    ]
    (one,) = findings(*trials)
    assert [(seen.ending, seen.trials, seen.tried, seen.outcome) for seen in one.endings] == [
        ("normal", 3, 3, "leaked"),
        ("timeout", 1, 2, "leaked"),
        ("forced:tree,sigterm", 1, 1, "silent"),
        ("forced:supervisor", 2, 4, "leaked"),
    ]
    assert (one.outcome, one.trials, one.tried, one.ending, one.plan, one.chance) == (
        "silent", 7, 10, "normal", "normal", ""
    )  # fmt: skip
    assert one.replay == one.endings[0].replay == "leakcheck leaks --target bwrap --plan normal --iterations 1"
    assert one.leaks[0].endings == {"forced:supervisor": 2, "forced:tree,sigterm": 1, "normal": 3, "timeout": 1}
    shown = text(one)
    assert shown[1].endswith(
        "normal 3 of 3 leaked, timeout 1 of 2 leaked, forced:tree,sigterm 1 of 1, forced:supervisor 2 of 4 leaked: "
        "7 file orphaned"
    )
    assert [line.strip() for line in shown if "replay: " in line or "or, " in line] == [
        f"replay: {one.replay}", f"or, timeout: {one.endings[1].replay}",
        f"or, forced:tree,sigterm: {one.endings[2].replay}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "two",
    [
        (trial(CGROUP, plan="normal"), trial(PROCESS, CGROUP)),
        (trial(FILE, plan="normal"), trial(LOCK)),
        (trial(FILE), trial(FILE, CGROUP)),
        (trial(FILE, plan="normal"), trial(("file", "damaged", FILE[2]))),
        (trial(("process", "orphaned", "socat")), trial(("process", "orphaned", "payload"))),
        (trial(FILE, plan="normal"), trial(("file", "reclaimable", FILE[2]), outcome="recovered")),
        (trial(FILE, plan="normal"), trial(("file", "bounded", FILE[2]), outcome="bounded")),
        (trial(PROCESS, FILE), trial(("process", "orphaned", "process 7 (socat): socat"), FILE)),
    ],
)
def test_two_leaks_are_two_findings(two: tuple[Any, Any]) -> None:
    one, other = findings(*two)
    assert one.id != other.id


def test_what_the_recovery_left_is_another_leak_and_what_the_next_run_left_is_a_runs() -> None:
    def left(stage: str) -> Any:
        made = trial(plan="normal")
        return msgspec.structs.replace(made, left=[Remnant("file", "orphaned", "f", stage=stage, place="/f")])

    assert len(findings(left("run"), left("next run"))) == 1
    assert len(findings(left("run"), left("recovery"))) == 2


def test_places_that_come_together_are_one_leak_and_the_text_says_which_ending_left_only_one_of_them() -> None:
    (one,) = findings(trial(FILE, plan=TERM.format(1)), trial(FILE, LOCK))
    assert "            file /run/box.lock · only forced:supervisor" in text(one)
    assert "            file /var/lib/litter-a1b2c3" in text(one)
    # Which of two that come together is in one trial more is chance.
    assert {one.id} == {found.id for found in findings(trial(FILE, LOCK), trial(LOCK))}
    assert {one.id} == {found.id for found in findings(trial(FILE, LOCK), trial(FILE))}


def test_what_normal_runs_leave_too_is_apart_from_what_only_a_kill_leaves() -> None:
    both = [trial(FILE, PROCESS, CGROUP, NOISE, outcome="wedged", detail="ran beside it")] * 3
    process, file = findings(trial(FILE, plan="normal"), *both)
    assert [(one.kind, one.count) for one in process.leaks] == [("process", 3), ("cgroup", 3), ("file", 3)]
    assert (process.outcome, process.trials, process.detail) == ("wedged", 3, "ran beside it")
    assert [one.kind for one in file.leaks] == ["file"]
    assert (file.outcome, file.trials, file.detail) == ("leaked", 4, "")
    assert [seen.ending for seen in file.endings] == ["normal", "forced:supervisor"]
    alone = findings(trial(PROCESS, CGROUP))
    assert process.id == alone[0].id


def test_names_that_only_happen_to_look_fixed_are_random_if_one_like_them_is() -> None:
    (one,) = findings(
        *[trial(("file", "orphaned", f"file /tmp/box-{name}")) for name in ("aB3dEf", "abcdef", "abcde7")]
    )
    assert one.trials == 3
    assert one.id == findings(trial(("file", "orphaned", "file /tmp/box-Zz9kQ1")))[0].id
    assert len(findings(*[trial(("file", "orphaned", f"file /run/{name}")) for name in ("monitor", "payload")])) == 2
    assert (fixed("/run/lock1"), fixed("/run/cache2")) == ("/run/lockN", "/run/cacheN")


def test_a_thousand_places_take_no_time() -> None:
    words = ["alphas", "bravos", "charlie", "delta1", "echoes", "golfers"]
    paths = ["file /var/" + "/".join(some) for some in itertools.product(words, repeat=4)]
    trials = [trial(*[("file", "orphaned", path) for path in paths[n : n + 40]]) for n in range(0, len(paths), 40)]
    began = time.process_time()
    found = findings(*trials)
    assert time.process_time() - began < 5
    assert sum(one.trials for one in found) == len(trials)


def test_a_wrong_status_beside_a_leak_is_a_finding_of_its_own() -> None:
    both = msgspec.structs.replace(
        trial(FILE, outcome="false-status", detail="status OK, not TLE: x"),
        outcomes=frozenset({"leaked", "false-status"}),
        wrong="status OK, not TLE: x",
    )
    status, leak = findings(both, trial(FILE, plan="normal"))
    assert (status.outcome, status.leaks, status.detail) == ("false-status", [], "status OK, not TLE: x")
    assert (leak.outcome, leak.trials, leak.detail) == ("leaked", 2, "")


def test_noise_that_only_some_trials_have_splits_no_leak_and_is_listed_last() -> None:
    (one,) = findings(trial(NOISE, FILE), trial(FILE), trial(("process", "reclaimable", "p"), FILE))
    assert [part.class_ for part in one.leaks] == ["orphaned", "reclaimable", "bounded"]


def test_the_program_of_a_process_is_the_same_in_every_trial() -> None:
    def program(comm: str, *args: str, state: str = "S", class_: str = "held") -> str:
        evidence = {"args": [*args], "resource": {"comm": comm, "state": state}}
        return program_of(Leak(kind="process", class_=class_, label="", evidence=evidence), [SLEEPING])

    assert program("sh", *SLEEPING.program) == program("sleep", "sleep", "613") == "payload"
    assert program("sh", "sh") == "sh"
    assert program("bwrap", "bwrap", "--", *SLEEPING.program) == "bwrap"
    assert program("runc:[2:INIT]", "runc", "init") == program("runc:[1:CHILD]", "runc", "init") == "runc"
    assert program("sh", state="Z") == "zombie sh"
    assert program("x", class_="respawning") == "respawning"


def test_every_path_of_cgroups_has_a_label_however_many_hierarchies_there_are() -> None:
    paths = ["/lxc.monitor.a", "/lxc.payload.a"]
    left = [Remnant("cgroup", "orphaned", f"cgroup c{n} {path}", place=path) for path in paths for n in "abcdefghijklm"]
    (found,) = residue([left, left])
    assert (len(found.labels), found.count, found.trials) == (26, 4, 2)


def test_the_json_has_whole_evidence_of_an_example_and_the_recoverys_commands() -> None:
    args = ["sleep", "a b", ""]
    evidence = {"args": args, "uid": 0, "parent": "1 (init)", "cgroup": "/x", "inspect": "cat /proc/7/status"}
    leak = Leak(kind="process", class_="orphaned", label="process 7", evidence=evidence)
    done = msgspec.structs.replace(trial(PROCESS), recovery=[Command(argv=["rm", "-rf", "x y"], exit=3)])
    (found,) = findings(*[msgspec.structs.replace(done, left=[Remnant.of(leak)])] * 50)
    made = json.loads(result(found).to_json())["findings"][0]
    assert made["leaks"][0]["examples"] == [
        {"label": "process 7", "endings": {"forced:supervisor": 50}, "evidence": evidence}
    ]
    assert made["recovery"] == [{"argv": ["rm", "-rf", "x y"], "exit": 3, "output": ""}]
    assert Result.from_json(result(found).to_json()) == result(found)


def test_hostile_arguments_do_not_fill_the_json() -> None:
    args = ["x" * 1000] * 2000
    leak = Leak(kind="process", class_="held", label="p", evidence={"args": args, "argv": " ".join(args)})
    kept = json.loads(bytes(Remnant.of(leak).evidence))
    assert len(kept["args"]) == 32
    assert (kept["args_cut"], kept["argv"]) == (1968, " ".join(kept["args"]))


def test_two_versions_of_a_target_with_an_adapter_each_have_the_same_findings() -> None:
    def of(name: str) -> set[str]:
        left = trial(("cgroup", "orphaned", f"/boxes/leakcheck-{name}-1-a1"))
        hung = trial(outcome="wedged", detail=f"{name} did not end by its wall limit of 1 s")
        return {one.id for one in findings(left, hung, target=name)}

    assert len(of("runc")) == 2
    assert of("runc") == of("runc-new")
