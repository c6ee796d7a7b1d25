"""`leakcheck faults` fails a clean-up, finds who reports success all the same, and what leakcheck itself overlooks."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, target

import leakcheck.trials.runner
from injectors import parse
from leakcheck.campaigns import Faults, FaultsOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.lies import lies
from leakcheck.errors import TargetError, UsageError
from leakcheck.targets import Target
from leakcheck.trials.case import case_of
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.trial import Trial

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

SETTLE = 0.1
PLACE = "/var/lib/fault-made"
# The redirection keeps the shell from executing the last command itself.
IGNORES = f'mkdir {PLACE}; "$@"; code=$?; rmdir {PLACE}; exit $code'
TELLS = f'mkdir {PLACE}; "$@"; code=$?; rmdir {PLACE} || exit 99; exit $code'
INSISTS = f'mkdir {PLACE}; "$@"; code=$?; until rmdir {PLACE}; do :; done; exit $code'
BUSY: dict[str, Any] = {"syscalls": ("rmdir",), "errno": ("EBUSY",)}
RMDIR = f"launch:0.3/rmdir({PLACE})"


def run(made: Target, plan: str = "", **options: Any) -> Result:
    if plan:
        options |= {"plan": parse(plan), "iterations": options.get("iterations", 1)}
    return run_campaign(Faults(), made, FaultsOptions(settle=SETTLE, **options))


def plans(result: Result, outcome: str) -> set[str]:
    found = [one for finding in result.findings for one in finding.endings if one.outcome == outcome]
    return {one.plan for one in found}


def test_a_run_that_reports_success_after_a_failed_release_is_silent_and_its_replay_line_shows_it(
    tmp_path: Path,
) -> None:
    result = run(target(tmp_path, IGNORES, recover=f"rm -rf {PLACE}"), syscalls=("rmdir",), errno=("EBUSY", "EPERM"))
    # A recovery that nobody calls is no excuse; that of a crashed run fails, and is run again.
    assert plans(result, "silent") == {f"{RMDIR}#{how}:{error}" for how in "1*" for error in ("EBUSY", "EPERM")}
    assert result.endings["cleanup"].keys() == {"silent"}
    assert not result.points["not_reached"]
    assert result.points["hit"] == result.points["seen"] == 2
    (finding,) = [one for one in result.findings if one.outcome == "silent"]
    assert finding.detail.startswith("the run reported OK; its last words: ")
    assert "Device or resource busy" in finding.detail or "not permitted" in finding.detail
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", finding.replay)[1:]]
    done = subprocess.run([*LEAKCHECK, *words], check=False, stderr=subprocess.DEVNULL)
    assert done.returncode == 1


def test_a_run_that_tells_and_a_recovery_that_removes_pass(tmp_path: Path) -> None:
    result = run(target(tmp_path, TELLS, recover=f"rm -rf {PLACE}"), phase="cleanup", **BUSY)
    assert result.verdict == "clean", result.findings
    assert result.endings["cleanup"] == {"recovered": 2}


def test_a_run_that_hangs_is_ended_and_wedged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakcheck.trials.runner, "GRACE", 4.0)
    made = target(tmp_path, INSISTS)
    assert run(made, f"{RMDIR}#1:EBUSY").outcomes == {"clean": 1}
    result = run(made, "launch:0.3/rmdir(/var/lib/fault-made)#*:EBUSY")
    assert result.outcomes == {"clean": 1}, "each attempt is another process"
    forever = (
        f'mkdir {PLACE}; "$@"; code=$?; python3 -c "import os, time\nwhile True:\n  try: os.rmdir(\\"{PLACE}\\")\n'
    )
    forever += '  except OSError: time.sleep(0.01)\n  else: break"; exit $code'
    result = run(target(tmp_path, forever, name="forever"), f"{RMDIR}#*:EBUSY")
    assert result.outcomes == {"wedged": 1}
    assert "ended by leakcheck" in result.findings[0].detail


def test_a_plan_of_two_stages_is_reached_only_if_both_its_faults_are(tmp_path: Path) -> None:
    made = target(tmp_path, TELLS, recover=f"rm -rf {PLACE}")
    both = run(made, f"{RMDIR}#1:EBUSY+recover:0.1/rmdir({PLACE})#1:before:SIGKILL")
    assert both.outcomes == {"recovered": 1}, "a recovery that was killed is run again"
    assert run(made, f"{RMDIR}#1:EBUSY+recover:0.1/rmdir({PLACE})#9:EBUSY").outcomes == {"not-reached": 1}


def test_a_target_without_a_step_of_a_clean_up_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="made makes no such call: no step of its clean-up can fail"):
        run(target(tmp_path, 'exec "$@"'), syscalls=("umount",))


def test_a_step_of_a_preparation_fails_too_and_one_that_ignores_it_is_silent(tmp_path: Path) -> None:
    prepare = f"mkdir {PLACE}; rmdir {PLACE}"
    failing = f"prepare:0.2/rmdir({PLACE})#1:EBUSY"
    result = run(target(tmp_path, 'exec "$@"', prepare=f"{prepare}; :"), **BUSY)
    assert plans(result, "silent") == {failing, failing.replace("#1", "#*")}
    assert not result.points["not_reached"]
    (finding,) = result.findings
    assert {one.class_ for one in finding.leaks} == {"growing"} or PLACE in str(finding.leaks)
    told = run(target(tmp_path, 'exec "$@"', prepare=f"{prepare} || exit 9; :"), failing)
    assert told.outcomes.keys() <= {"leaked", "wedged"}, "it said so"


@pytest.mark.parametrize(
    "instead", ["rmdir {place}; exit 0", 'rmdir {place}; "$@" > /dev/null; exit 0', 'rmdir {place}; "$@"; "$@"; exit 0']
)
def test_ok_of_a_run_whose_output_is_not_that_of_its_payload_is_wrong(tmp_path: Path, instead: str) -> None:
    script = f'mkdir {PLACE}; rmdir {PLACE} || {{{{ {instead.format(place=PLACE)}; }}}}; "$@"'
    result = run(target(tmp_path, script), "launch:0.2/rmdir(/var/lib/fault-made)#1:EBUSY")
    assert result.outcomes == {"false-status": 1}, result.to_json()
    assert "status OK of a run whose payload" in result.findings[0].detail
    again = f"mkdir {PLACE}; rmdir {PLACE} || rmdir {PLACE}; " + '"$@"'
    assert run(target(tmp_path, again, name="again"), f"launch:0.2/rmdir({PLACE})#1:EBUSY").verdict == "clean"


def test_lies_that_change_something_are_reported_and_fail_no_target(tmp_path: Path) -> None:
    result = run(target(tmp_path, IGNORES, recover=f"rm -rf {PLACE}"), mode="lie", phase="cleanup", syscalls=("rmdir",))
    (recall,) = [one for one in result.criteria if one.name.startswith("share of lies")]
    assert recall.passed
    assert {*result.points["lies"]["differing"]} >= {f"{RMDIR}#1:lie", f"{RMDIR}#*:lie"}
    assert result.points["lies"]["missed"] == {}
    assert result.verdict == "clean"


def test_a_lie_is_missed_if_it_changes_the_state_each_time_and_nothing_is_reported() -> None:
    def trial(plan: str, *left: Remnant, **state: int) -> Trial:
        return Trial(case=case_of(parse(plan)), left=[*left], state={"mount /": 1, **state})

    honest = [trial(f"{RMDIR}#1:delay=1ms", file=count) for count in (1, 2)]
    changed, same = trial(f"{RMDIR}#1:lie", file=3), trial(f"{RMDIR}#1:lie", file=2)
    assert lies([*honest, changed]).missed == {f"{RMDIR}#1:lie": ["file: 3, not 1 to 2"]}
    assert lies([*honest, changed, same]).differing == []
    assert lies([changed]).differing == [], "nothing to compare with"
    seen = lies([*honest, trial(f"{RMDIR}#1:lie", Remnant("file", "orphaned", "file"))])
    assert (len(seen.differing), seen.missed) == (1, {})
    # What a crashed run left and its recovery removed says nothing of the recovery.
    recovery = f"recover:0/rmdir({PLACE})#1"
    gone = Remnant("process", "reclaimable", "process", by="recovery")
    found = lies([trial(f"{recovery}:delay=1ms", gone), trial(f"{recovery}:lie", gone, file=1)])
    assert found.missed == {f"{recovery}:lie": ["file: 1, not 0 to 0"]}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"errno": ("ECHILD",), "syscalls": ("rmdir",)}, "not in the manual page of rmdir, which has EACCES"),
        ({"syscalls": ("rmdri",)}, "'rmdri': no operation"),
        ({"syscalls": ("swapoff",)}, "leakcheck does not know its errors"),
        ({"syscalls": ("clone",), "mode": "lie"}, "nothing can stand for what clone returns"),
        ({"errno": ("EBUSY",), "mode": "lie"}, "it has no error"),
        ({"plan": parse(f"{RMDIR}#1:lie"), "mode": "lie"}, "--mode --plan: a plan says all of that itself"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UsageError, match=re.escape(wrong)):
        FaultsOptions(**options).check()


def test_an_errno_is_for_the_operations_that_have_it() -> None:
    options = FaultsOptions(errno=("EBUSY", "ECHILD"), syscalls=("rmdir", "wait"))
    options.check()
    assert (options.errors("rmdir"), options.errors("wait")) == (["EBUSY"], ["ECHILD"])
    assert FaultsOptions(errno=("ECHILD",), any_errno=True).errors("rmdir") == ["ECHILD"]
