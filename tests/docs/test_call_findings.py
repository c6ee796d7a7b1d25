"""The page of findings by call is made of the files that are kept of each sweep, and of nothing else."""

import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from injectors import parse
from leakcheck.campaigns.result import Criterion, Example, Finding, Occurrence, Residue, Result
from leakcheck.targets import builtin
from leakcheck.trials.explanation import Explanation, Frame, Life

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/call-findings.md"
KEPT = sorted(PAGE.with_suffix("").glob("*/*.json"))


def _sweeps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweeps", ROOT / "scripts/sweeps.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweeps"] = module
    spec.loader.exec_module(module)
    return module


sweeps = _sweeps()


def _result(left: Sequence[Finding], **points: int) -> Result:
    return Result(
        campaign="crash",
        target="bwrap",
        version="1",
        seed=7,
        wanted=9,
        trials=3,
        verdict="leaked",
        outcomes={"leaked": 3},
        criteria=[Criterion(name="n", passed=True, measured=0, limit=0)],
        findings=[*left],
        points={"seen": 4, "plans": 9, "tried": 3} | points,
    )


def _finding(label: str, path: str, *, chance: str = "", kind: str = "file", created: str = "") -> Finding:
    plan = "launch:0/mkdir(/tmp/N)#1:after:SIGKILL"
    example = Example(label=label, endings={"crash": 3}, evidence={"resource": {"path": path}})
    lives = [Life(kind=kind, label=label, created=created, how="no call of a run without the fault releases it")]
    return Finding(
        id="1",
        ending="crash",
        outcome="leaked",
        leaks=[Residue(kind=kind, class_="growing", labels=[label], examples=[example])],
        trials=3,
        replay="",
        chance=chance,
        plan=plan,
        endings=[Occurrence(ending="crash", outcome="leaked", trials=3, tried=3, plan=plan, replay="")],
        explanation=Explanation(plan=plan, outcome="leaked", lives=lives) if created else None,
    )


def _checkout(directory: Path) -> Path:
    """Copy what the page is made by and of."""
    for name in ("scripts/call-findings", "scripts/sweeps.py", "docs/explanation/call-findings.md"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    shutil.copytree(PAGE.with_suffix(""), directory / "docs/explanation/call-findings")
    return directory / "docs/explanation/call-findings.md"


def _write(checkout: Path, *words: str) -> None:
    script = checkout.parents[2] / "scripts/call-findings"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, *words], check=True, env=environment, cwd=script.parent, timeout=60)


def test_the_page_is_what_the_kept_files_say_and_no_more(tmp_path: Path) -> None:
    page = _checkout(tmp_path)
    written = page.read_text()
    head, _, rest = written.partition("<!-- results: written by scripts/call-findings -->")
    tail = rest.partition("<!-- end of results -->")[2]
    # What is between the marks does not matter.
    page.write_text(f"{head}<!-- results: written by scripts/call-findings -->\nold\n<!-- end of results -->{tail}")
    _write(page, "--only-page")
    assert page.read_text() == written == PAGE.read_text()


def test_a_result_replaces_the_rows_of_its_target_and_campaign_alone(tmp_path: Path) -> None:
    page = _checkout(tmp_path)
    before = page.read_text().splitlines()
    kept = {file: file.read_bytes() for file in page.with_suffix("").glob("*/*.json")}
    (tmp_path / "results/crash").mkdir(parents=True)
    (tmp_path / "results/crash/bwrap.json").write_text(_result([]).to_json())
    _write(page, "--only", "bwrap", "--campaign", "crash", "--no-sweep", "--results", str(tmp_path / "results"))
    changed = [file for file, content in kept.items() if file.read_bytes() != content]
    assert [str(file.relative_to(page.parent)) for file in changed] == ["call-findings/bwrap/crash.json"]
    lines = page.read_text().splitlines()
    assert "| bwrap (1) | kills | 4 | 3 of 9, seed 7 | 3 leaked | 0 |" in lines
    for row in ("| firejail (", "| runc (", "## crun", "| youki |"):
        assert [line for line in lines if line.startswith(row)] == [line for line in before if line.startswith(row)]


def test_the_kept_files_are_small_and_name_nothing_of_the_machine_that_made_them() -> None:
    names = [str(ROOT), str(Path.home()), socket.gethostname(), "/work/", "/home/", "/root/"]
    named = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}" for name in names if len(name) > 1))
    for file in KEPT:
        content = file.read_text()
        assert len(content) < 16_384, file
        assert named.search(content) is None, file
        kind = sweeps.Versions if file.parent.name == "versions" else sweeps.Swept
        assert sweeps.to_json(msgspec.json.decode(content, type=kind)) == content, file


def test_the_kept_files_state_what_was_tried_and_their_replay_lines_parse() -> None:
    names = {target.name for target in builtin()}
    for kept in sweeps.read(PAGE.with_suffix(""))[0]:
        assert kept.target in names
        assert 0 < kept.tried <= kept.plans, kept
        for thing in kept.things:
            command = shlex.split(thing.replay)
            assert command[:4:2] == ["leakcheck", "--target"]
            assert command[3] == kept.target
            assert str(parse(command[command.index("--plan") + 1]))
            assert thing.trials.keys() == {kept.campaign}


def test_what_two_campaigns_leave_is_one_thing_and_what_was_not_repeated_is_none() -> None:
    one, other = _finding("dir /tmp/box-a1b2c3d4", "/tmp/box-a1b2c3d4"), _finding("dir /tmp/box-e5f6", "/tmp/box-e5f6")
    found = sweeps.swept("crash", _result([one, other, _finding("dir /tmp/chance", "/tmp/chance", chance="flaky")]))
    assert [(thing.label, thing.trials) for thing in found.things] == [("dir /tmp/box-N", {"crash": 6})]
    timeouts = sweeps.swept("timeouts", _result([one]))
    faults = sweeps.swept("faults", _result([one]))
    text = "\n".join(sweeps.page([found, timeouts, faults], []))
    assert "**2 findings in 1 of 1 targets**; 1, if" in text
    assert "6 kills, 3 kills of a run that reaches its time limit" in text


def test_a_tree_of_processes_is_one_thing_whatever_part_of_it_a_trial_has() -> None:
    both, one = (_finding(f"process 5 ({name}): {name}", "", kind="process") for name in ("sh", "sleep"))
    examples = [
        Example(label=f"process 5 ({name}): {name}", endings={"crash": 3}, evidence={"resource": {"comm": name}})
        for name in ("sh", "sleep")
    ]
    both.leaks[0].examples[:] = examples
    one.leaks[0].examples[:] = examples[1:]
    found = sweeps.swept("timeouts", _result([both, one]))
    assert [(thing.label, thing.places, thing.trials) for thing in found.things] == [
        ("process N (sh): sh", ["sh", "sleep"], {"timeouts": 6})
    ]


def test_a_thing_is_explained_and_replayed_by_a_plan_that_leaves_it() -> None:
    finding = _finding("file /tmp/box.lock", "/tmp/box.lock", created="launch:0/open(/tmp/box.lock)#1")
    other = "launch:0/unlink(/tmp/box.state)#1:EBUSY"
    state = Example(
        label="file /tmp/box.state", endings={"other": 2}, evidence={"resource": {"path": "/tmp/box.state"}}
    )
    lock = Example(label="file /tmp/box.lock", endings={"other": 2}, evidence={"resource": {"path": "/tmp/box.lock"}})
    finding.leaks.append(
        Residue(kind="file", class_="orphaned", labels=[lock.label, state.label], examples=[lock, state])
    )
    finding.endings.append(Occurrence(ending="other", outcome="silent", trials=2, tried=2, plan=other, replay=""))
    found = sweeps.swept("faults", _result([finding]))
    assert [(one.label, one.trials["faults"], bool(one.life), other in one.replay) for one in found.things] == [
        ("file /tmp/box.lock", 5, True, False),
        ("file /tmp/box.state", 2, False, True),
    ]


def test_what_every_run_leaves_is_one_finding_whatever_ended_the_run() -> None:
    one = _finding("dir /tmp/box", "/tmp/box", created="launch:0/mkdir(/tmp/box)#1")
    text = "\n".join(sweeps.page([sweeps.swept(name, _result([one])) for name in ("crash", "faults")], []))
    assert "**1 findings in 1 of 1 targets**; 1, if" in text
    assert "3 kills, 3 failing steps" in text


def test_a_plan_that_nothing_explains_is_explained_on_request() -> None:
    asked: list[str] = []

    def explain(plan: str) -> Explanation:
        asked.append(plan)
        told = _finding("dir /tmp/box", "/tmp/box", created="launch:0/mkdir(/tmp/box)#1").explanation
        assert told is not None
        return told

    found = sweeps.swept("crash", _result([_finding("dir /tmp/box", "/tmp/box")]), explain)
    assert asked == ["launch:0/mkdir(/tmp/N)#1:after:SIGKILL"]
    assert found.things[0].life.startswith("created at launch:0/mkdir(/tmp/box)#1")


def test_names_that_differ_in_each_run_and_paths_of_the_machine_are_replaced() -> None:
    installed = ROOT / ".targets/bin/youki"
    assert sweeps.steady(f"process 22 (youki): {installed} --root /var/run") == (
        "process N (youki): .targets/bin/youki --root /var/run"
    )
    assert sweeps.steady("cgroup v2 /boxes/leakcheck-runc-new-10000-ac58f7ce799f") == (
        "cgroup v2 /boxes/leakcheck-runc-new-N-N"
    )
    assert sweeps.steady("exit 1, said: 2026-11-29T15:57:08Z /usr/bin/python3 within 10 s") == (
        "exit 1, said: TIME /usr/bin/python3 within 10 s"
    )


def test_what_is_kept_without_functions_is_explained_once_more_by_its_own_plan() -> None:
    made = "launch:0/mkdir(/tmp/box)#1"
    finding = _finding("dir /tmp/box", "/tmp/box", created=made)
    (thing,) = sweeps.swept("crash", _result([finding])).things
    assert thing.told == (True, True, False)
    asked: list[str] = []

    def explain(plan: str, *functions: str) -> Explanation:
        asked.append(plan)
        stack = [Frame(program="/usr/bin/box", address=1, function=one) for one in functions]
        assert finding.explanation is not None
        return msgspec.structs.replace(finding.explanation, stack=stack)

    assert not sweeps.renew(thing, explain), "no more is known"
    assert sweeps.renew(thing, lambda plan: explain(plan, "runc.destroy"))
    assert thing.functions == ["runc.destroy"] and thing.life.startswith(f"created at {made}")
    assert asked == ["launch:0/mkdir(/tmp/N)#1:after:SIGKILL"] * 2
    thing.life += ", released at launch:0/rmdir(/tmp/box)#1"
    assert not sweeps.renew(thing, explain), "all is known"
    assert len(asked) == 2


def test_a_comparison_without_findings_says_so() -> None:
    none = sweeps.versions("faults", _result([]), _result([]))
    assert "from bwrap (1) to bwrap (1), failing steps, 3 and 3 trials: no finding in either." in "\n".join(
        sweeps.page([], [none])
    )
