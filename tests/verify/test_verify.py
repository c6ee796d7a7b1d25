"""`leakcheck verify` runs the plan on a target: what passes, fails, is undecided or does not apply, on one page."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from made import LEAKCHECK, WATCHES, target
from waiting import PATIENCE, wait_until

from leakcheck.campaigns import CAMPAIGNS
from leakcheck.errors import UsageError
from leakcheck.verify import Part, Requirement, Verification, Verifications, plan_of, select, verify
from leakcheck.verify.compare import compared
from leakcheck.verify.render import comparison, page

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
CLEAN = 'exec "$@"'
LEAKS = ': >/var/lib/left-$$; exec "$@"'
# Nobody kills the supervisor, which would leave the payload.
NORMAL = Requirement(id="R6", title="leaks", parts=[Part("leaks", {"iterations": 6, "endings": ("normal",)})])


def of(tmp_path: Path, script: str, *only: str, name: str = "made") -> Verification:
    plan = [NORMAL if one.id == "R6" else one for one in plan_of("quick")]
    return verify(target(tmp_path, script, name=name), "quick", select(plan, only, []))


def statuses(found: Verification) -> dict[str, str]:
    return {one.id: one.status for one in found.requirements}


@pytest.mark.parametrize("profile", ["quick", "full", "release"])
def test_each_requirement_is_in_each_profile_with_options_that_its_campaign_has(profile: str) -> None:
    plan = plan_of(profile)  # type: ignore[arg-type]
    assert [one.id for one in plan] == [f"R{number}" for number in range(1, 9)]
    assert {part.campaign for one in plan for part in one.parts} == {*CAMPAIGNS} - {"soak"}
    for one in plan:
        for part in one.parts:
            CAMPAIGNS[part.campaign].options(**part.options).check()


def test_a_target_that_leaves_nothing_passes_and_what_it_does_not_have_is_not_applicable(tmp_path: Path) -> None:
    found = of(tmp_path, CLEAN, "R6", "locks", "R8")
    assert statuses(found) == {"R6": "pass", "R7": "not applicable", "R8": "not applicable"}
    assert (found.verdict, found.complete) == ("clean", True)
    text = "\n".join(line.plain for line in page(found))
    assert "not applicable  locks: made declares no locks" in text
    assert text.endswith("pass: R6; not applicable: R7, R8")


def test_what_does_not_apply_alone_is_no_pass(tmp_path: Path) -> None:
    assert of(tmp_path, CLEAN, "R7").verdict == "unknown"


def test_a_leak_fails_its_requirement_and_the_page_has_the_line_that_replays_it(tmp_path: Path) -> None:
    found = of(tmp_path, LEAKS, "R6")
    assert (statuses(found), found.verdict) == ({"R6": "fail"}, "leaked")
    text = "\n".join(line.plain for line in page(found))
    assert "findings of R6 leaks" in text
    assert "file /var/lib/left-" in text
    assert "replay: leakcheck leaks --target" in text
    again = Verifications.from_json(Verifications(targets=[found]).to_json())
    assert [line.plain for line in page(again.targets[0])] == text.splitlines()


def test_two_targets_side_by_side_show_which_of_them_fails_what(tmp_path: Path) -> None:
    both = [of(tmp_path, LEAKS, "R6", name="old"), of(tmp_path, CLEAN, "R6", name="new")]
    text = [line.plain for line in comparison(both)]
    assert text[0].split() == ["old", "new"]
    assert next(one for one in text if one.startswith("  R6")).split() == ["R6", "leaks", "fail", "pass"]
    row = next(one for one in text if "left something for good" in one)
    assert row.split()[-4:] == ["6", "fail", "0", "pass"], row
    assert "  old: " in text


def test_a_later_result_is_worse_if_a_requirement_fails_that_passed(tmp_path: Path) -> None:
    clean, leaks = (of(tmp_path, script, "R6", "R7", name=name) for script, name in ((CLEAN, "v1"), (LEAKS, "v2")))
    for name, found in (("old", clean), ("new", leaks)):
        (tmp_path / f"{name}.json").write_text(Verifications(targets=[found]).to_json())

    def diff(*names: str) -> "subprocess.CompletedProcess[str]":
        command = [*LEAKCHECK, "diff", *(tmp_path / f"{name}.json" for name in names)]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    worse, better = diff("old", "new"), diff("new", "old")
    assert (worse.returncode, better.returncode) == (1, 0), worse.stderr + better.stderr
    assert "v1 and v2 R6 leaks: pass, then fail" in worse.stderr
    assert "1 new finding, 0 gone" in worse.stderr
    assert "0 new findings, 1 gone" in better.stderr
    (tmp_path / "snapshot.json").write_text("{}")
    odd = diff("old", "snapshot")
    assert odd.returncode == 2
    assert "is a result of verify," in odd.stderr


def test_a_requirement_that_is_not_decided_any_more_is_unknown(tmp_path: Path) -> None:
    old, new = of(tmp_path, CLEAN, "R6"), of(tmp_path, CLEAN, "R7")
    both = of(tmp_path, CLEAN, "R6", "R7")
    assert compared(Verifications(targets=[both]), Verifications(targets=[old])).verdict == "clean"
    assert compared(Verifications(targets=[both]), Verifications(targets=[new])).verdict == "unknown"
    with pytest.raises(UsageError, match="no campaign in common"):
        compared(Verifications(targets=[old]), Verifications(targets=[new]))


def test_a_campaign_that_cannot_be_made_leaves_its_requirement_undecided(tmp_path: Path) -> None:
    found = of(tmp_path, f'{WATCHES}; exec "$@"', "R3", "R6")
    assert statuses(found) == {"R3": "inconclusive", "R6": "pass"}
    assert found.verdict == "unknown"
    assert "cannot be traced" in found.requirements[0].parts[0].reason


def test_a_campaign_that_crashes_decides_nothing_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("by a test")

    monkeypatch.setattr(CAMPAIGNS["crash"], "prepare", crash)
    found = of(tmp_path, CLEAN, "R3", "R6")
    assert statuses(found) == {"R3": "inconclusive", "R6": "pass"}
    assert found.requirements[0].parts[0].reason == "internal error, ZeroDivisionError: by a test"


def test_names_select_and_unknown_ones_are_errors() -> None:
    plan = plan_of("quick")
    assert [one.id for one in select(plan, ["stress", "R8"], ["R2"])] == ["R1", "R8"]
    for only, skip, what in ([["R9"], [], "--only 'R9': one of R1"], [["R1"], ["stress"], "nothing is left"]):
        with pytest.raises(UsageError, match=what):
            select(plan, only, skip)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "nosuch"], 2, "unknown target 'nosuch'"),
        (["--only", ","], 2, "names nothing"),
        (["--target", "refbox", "--target", "refbox"], 2, "two of them have the name 'refbox'"),
        (["--compare"], 2, "--compare: give two targets at least"),
        (["--profile", "odd"], 2, "'odd' is not one of 'quick', 'full', 'release'"),
        (["-o", "/nosuch/file"], 2, "/nosuch"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], code: int, message: str) -> None:
    command = [*LEAKCHECK, "verify", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert message in done.stderr, done.stderr


def test_a_target_that_is_not_there_is_exit_4(tmp_path: Path) -> None:
    made = target(tmp_path, CLEAN)
    made.path.write_text(made.path.read_text().replace("'/bin/sh'", "'no-such-sandbox'"))
    command = [*LEAKCHECK, "verify", "--target", made.path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "no-such-sandbox" in done.stderr


@contextlib.contextmanager
def second_begun(tmp_path: Path) -> Generator[subprocess.Popen[str], None, None]:
    """Start R3 and R6 of a target, with a result in ``saved.json`` and output in ``err``, and wait until R6 begins."""
    command = [*LEAKCHECK, "verify", "--target", target(tmp_path, CLEAN).path, "--only", "R3,R6"]
    command += ["-o", tmp_path / "saved.json"]
    with (tmp_path / "err").open("w+") as err:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=err, stderr=err, text=True)
        wait_until("the second begins", lambda: "R6 leaks: begins" in (tmp_path / "err").read_text())
        yield running


def test_ctrl_c_gives_what_there_is_and_the_rest_is_undecided(tmp_path: Path) -> None:
    with second_begun(tmp_path) as running:
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 130
    found = Verifications.from_json((tmp_path / "saved.json").read_text()).targets[0]
    assert (found.interrupted, found.complete) == (True, False)
    first, second = found.requirements
    assert first.parts[0].result is not None
    assert second.status == "inconclusive"
    assert "summary" in (tmp_path / "err").read_text()


def test_a_result_that_cannot_be_saved_is_told_and_the_rest_is_run(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    verify_it = shlex.join([*map(str, LEAKCHECK), "verify", "--only", "R6", "-o", str(full / "r.json")])
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(full)]
    # Not even the result so far has room.
    fill = f"head -c 12k /dev/zero >{full}/x; "
    command = ["unshare", "--mount", "sh", "-c", f"{shlex.join(mount)} && {fill} exec {verify_it}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 3, done.stderr
    assert "the result so far is not kept: " in done.stderr
    assert "summary pass: R6" in done.stderr


def test_sigkill_keeps_what_came_before(tmp_path: Path) -> None:
    with second_begun(tmp_path) as running:
        running.kill()
        running.wait()
    first, second = Verifications.from_json((tmp_path / "saved.json").read_text()).targets[0].requirements
    assert first.parts[0].result is not None
    assert (second.status, second.parts[0].reason) == ("inconclusive", "not run yet")
