"""`leakcheck state` with state files of other kinds, and beside a box that is in use."""

import os
import re
from pathlib import Path

import pytest
from made import target

from injectors import parse
from injectors.damages import Found
from injectors.state import state_plan
from leakcheck.campaigns import Result, State, StateOptions
from leakcheck.campaigns import run as run_campaign
from leakcheck.campaigns.state import Facts
from leakcheck.conformance import check
from leakcheck.errors import UsageError
from leakcheck.targets import Target
from leakcheck.trials.power import cuts
from leakcheck.trials.state_history import RecordedRun, record_history

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

HOME = "/var/lib/state-test"
DIES = "setpriv --pdeathsig KILL unshare --pid --fork --kill-child"
STATE = f"{HOME}/d/state.json"
MORE = f'state_files = ["{STATE}"]\nstate = ["{HOME}"]\n'
RUNS = f'mkdir {HOME}/made-$$; {DIES} timeout $wall "$@"; code=$?; rmdir {HOME}/made-$$'
SWEEPS = f"rm -rf {HOME}/made-* {HOME}/d"


def made(tmp_path: Path, writes: str, recover: str = SWEEPS, more: str = MORE, name: str = "made") -> Target:
    launch = f"wall=$2; shift 2; mkdir -p {HOME}/d; {writes}; {RUNS}; rm -rf {HOME}/d/*; exit $code"
    return target(tmp_path, launch, recover=recover, more=more, name=name)


def run(of: Target, *plans: str) -> list[Result]:
    return [
        run_campaign(State(), of, StateOptions(settle=0.1, plan=parse(plan), iterations=1, profile="quick"))
        for plan in plans
    ]


def shown(result: Result) -> str:
    return "; ".join(f"{one.outcome} {one.plan}: {one.detail}" for one in result.findings) or str(result.outcomes)


BOX = f"{HOME}/d/$BOX.json"
# The state of a box is who runs in it.
BOXES = f"""wall=$2; shift 2; mkdir -p {HOME}/d; [ ! -e {HOME}/refuses-$BOX ] || exit 3; : > {HOME}/known-$BOX
echo $$ > {BOX}; {DIES} timeout $wall "$@"; code=$?; rm -f {BOX}; exit $code"""
DAMAGED = f"[ ! -e {BOX} ] || [ -s {BOX} ] ||"
OTHERS = {
    "knows its own": ":",
    "ends all": f"{DAMAGED} kill -9 $(cat {HOME}/d/*.json)",
    "takes all out of service": f"{DAMAGED} for one in {HOME}/known-*; do : > {HOME}/refuses-${{{{one##*-}}}}; done",
}


@pytest.mark.parametrize("how", OTHERS)
def test_a_box_that_is_in_use_goes_on_and_works_on_whatever_became_of_the_state_of_another(
    tmp_path: Path, how: str
) -> None:
    boxes = (
        f'state_files = ["{HOME}/d/{{box}}.json"]\nstate = ["{HOME}"]\nbox = "reused"\nenv = {{ BOX = "{{box}}" }}\n'
    )
    mends = f"{OTHERS[how]}; rm -f {BOX} {HOME}/refuses-$BOX"
    of = target(tmp_path, BOXES, recover=mends, more=boxes)
    file = of.adapter.state_files[0]
    (result,) = run(of, str(state_plan(file, "empty", beside=True)))
    assert (result.verdict == "clean") == (how == "knows its own"), shown(result)
    if how == "knows its own":
        assert result.outcomes == {"clean": 2}
        return
    (finding,) = result.findings
    # Its payload may see its supervisor's end before it is asked to end itself, or after.
    said = "(its run was ended: )?status RE" if how == "ends all" else "status RE, not OK"
    assert re.match(f"another box, which was in use: {said}", finding.detail), shown(result)
    assert "empty,sleeping,beside" in finding.replay
    # Without damage, it ends nobody.
    assert result.outcomes == {"clean": 1, "wedged": 1}


def test_each_profile_has_damages_beside_another_box_with_a_control() -> None:
    facts = Facts({STATE: b'{"a": 1}'}, {STATE: []})
    for profile, least in (("quick", 3), ("full", 17)):
        plans = [str(one) for one in State().plans(StateOptions(profile=profile), facts)]  # type: ignore[arg-type]
        besides = [one for one in plans if one.endswith(",beside")]
        assert len(besides) >= least
        assert f"state:{STATE}:none,sleeping,beside" in besides
    with pytest.raises(UsageError, match="alone or with beside after it, or living"):
        parse(f"state:{STATE}:empty,beside")


LINKS = f"printf x > {HOME}/d/v1; ln -sfn v1 {STATE}"


def test_a_state_file_that_is_a_link_is_damaged_where_it_leads_to(tmp_path: Path) -> None:
    believes = f"[ ! -L {STATE} ] || [ ! -s {STATE} ] || rm -rf {HOME}/made-*; rm -rf {HOME}/d"
    empty, missing, none = run(
        made(tmp_path, LINKS, believes), *(str(state_plan(STATE, one)) for one in ("empty", "missing", "none"))
    )
    assert none.verdict == "clean", shown(none)
    assert {empty.verdict, missing.verdict} == {"leaked"}, shown(empty) + shown(missing)


@pytest.mark.parametrize("damage", ["empty", "garbage", "mode=777", "missing"])
def test_a_file_of_the_kernel_to_which_a_link_leads_is_never_damaged(tmp_path: Path, damage: str) -> None:
    # Of the arena's own first process.
    file = f"{HOME}/l/oom_score_adj"
    more = f'state_files = ["{file}"]\nstate = ["{HOME}"]\n'
    of = made(tmp_path, f"ln -sfn /proc/1 {HOME}/l", f"{SWEEPS} {HOME}/l", more)
    (result,) = run(of, str(state_plan(file, damage)))
    assert result.outcomes == {"not-reached": 2}, shown(result)
    assert not result.error


def kinds(found: Found) -> set[str]:
    facts = Facts({STATE: found}, {STATE: []})
    words = [
        str(one).rpartition(":")[2].partition(",")[0] for one in State().plans(StateOptions(profile="quick"), facts)
    ]
    return {word.partition("=")[0] for word in words}


def test_the_values_of_a_long_document_are_damaged_and_what_is_too_long_has_its_name_damaged(tmp_path: Path) -> None:
    pad = "head -c 1100000 /dev/zero | tr '\\0' x"
    long = f"""{{{{ printf '{{{{"version": 1, "pad": "'; {pad}; printf '"}}}}'; }}}} > {STATE}"""
    facts = State().prepare(made(tmp_path, long), StateOptions(profile="quick"), _Quiet(), lambda: False)
    found = facts.contents[STATE]
    assert isinstance(found, bytes)
    assert len(found) > 1_100_000
    assert {"drop", "retype", "truncate"} <= kinds(found)
    assert any("no power cut was tried: it is larger than 256 KiB" in note for note in facts.notes), facts.notes
    sparse = State().prepare(
        made(tmp_path, f"truncate -s 9G {STATE}", name="sparse"), StateOptions(), _Quiet(), lambda: False
    )
    assert sparse.contents[STATE] == "large"
    assert {"missing", "fifo"} <= kinds("large")
    assert "empty" not in kinds("large")


class _Quiet:
    def log(self, text: str) -> None:
        """Drop it."""


def recorded(of: Target) -> RecordedRun:
    return record_history(of, lambda: False)


ELSEWHERE = f"mkdir -p {HOME}/new; printf x > {HOME}/new/s; SYNC; mv {HOME}/new/s {STATE}; sync {HOME}/d {HOME}/new"


def test_a_state_that_was_synced_in_another_directory_is_whole_after_a_power_cut(tmp_path: Path) -> None:
    for sync, torn in ((f"sync {HOME}/new/s", False), (":", True)):
        of = made(tmp_path, ELSEWHERE.replace("SYNC", sync), name=f"torn-{torn}".lower())
        found = cuts(of, recorded(of), STATE)
        assert found
        contents = {cut.disk[STATE].content for cut in found.values() if STATE in cut.disk}
        assert contents == ({b"", b"\0", b"x"} if torn else {b"x"})


# It answers to whoever opens the FIFO, and writes the state.
DAEMON = """[ -p /run/asks ] || {{ mkfifo /run/asks /run/says
setsid sh -c 'while read x < /run/asks; do echo x > $0; echo y > /run/says; done' STATE < /dev/null > /dev/null 2>&1 &
}}; echo go > /run/asks; read x < /run/says""".replace("STATE", STATE)


def test_no_power_cut_is_tried_where_a_process_of_an_earlier_run_writes(tmp_path: Path) -> None:
    of = made(tmp_path, DAEMON)
    found = recorded(of)
    assert found.uncut[STATE].startswith("a process of an earlier run lives on")
    assert not cuts(of, found, STATE)
    assert not recorded(made(tmp_path, f"echo x > {STATE}", name="alone")).uncut


def test_a_state_file_that_no_run_changes_is_named(tmp_path: Path) -> None:
    keeps = f'wall=$2; shift 2; mkdir -p {HOME}/d; [ -e {STATE} ] || echo x > {STATE}; {DIES} timeout $wall "$@"'
    found = recorded(target(tmp_path, keeps, more=MORE))
    assert found.uncut == {STATE: "no run was seen to change it"}


LOG = f'[damage]\nlog = "{HOME}/log"\nwords = ["damaged"]\nkeeps = ["{HOME}/bad/*"]\n'


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (f"mkdir -p {HOME}/bad; cp {STATE} {HOME}/bad/one; echo damaged >> {HOME}/log", ""),
        (f"echo odd >> {HOME}/log", f"damage.log: after {STATE} was garbled and the recovery ran, no new line of"),
        (f"echo damaged >> {HOME}/log", f"damage.keeps: after {STATE} was garbled and the recovery ran, there was"),
    ],
)
def test_the_check_of_an_adapter_covers_what_it_says_of_damaged_state(tmp_path: Path, does: str, said: str) -> None:
    tells = f"[ ! -e {STATE} ] || grep -q '^x$' {STATE} || {{{{ {does}; }}}}; {SWEEPS}"
    (finding,) = check(made(tmp_path, f"echo x > {STATE}", tells, MORE + LOG), ["state"])
    assert finding.detail.startswith(said)
    assert finding.passed == (not said), finding.detail
    assert check(made(tmp_path, f"echo x > {STATE}", tells, name="without"), ["state"]) == []
