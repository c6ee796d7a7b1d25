"""`leakcheck locks` with locks of other kinds: directories, links, and those that the next boot finds."""

import os
from pathlib import Path

import pytest
from made import target

from injectors import parse
from injectors.crash import Point
from leakcheck.campaigns import Locks, LocksOptions, Result
from leakcheck.campaigns import run as run_campaign
from leakcheck.errors import UsageError
from leakcheck.targets import Target
from leakcheck.trials.crash_points import Recorded
from leakcheck.trials.executor import Ui
from leakcheck.trials.lock_files import LockFacts
from leakcheck.trials.runner import never

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

HOME = "/var/lib/locks-test"
LOCK = f"{HOME}/box.lock"
DIES = "setpriv --pdeathsig KILL unshare --pid --fork --kill-child"
TABLE = f'state = ["{HOME}"]\nlocks = {{ files = ["{LOCK}"], busy = [9], within = 2 }}\n'
# Both are taken by whoever makes them, and name who has them.
KINDS = {
    kind: f"""shift 2; mkdir -p {HOME}; {takes} || exit 9; {DIES} "$@"; code=$?; {drops} {LOCK}; exit $code"""
    for kind, takes, drops in (("directory", f"mkdir {LOCK}", "rmdir"), ("link", f"ln -s nowhere.$$ {LOCK}", "rm"))
}


def run(of: Target, plan: str) -> Result:
    return run_campaign(Locks(), of, LocksOptions(settle=0.1, plan=parse(plan), iterations=1))


def outcomes(result: Result) -> set[str]:
    return {finding.outcome for finding in result.findings}


def shown(result: Result) -> str:
    return "; ".join(f"{one.outcome} {one.plan}: {one.detail}" for one in result.findings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_no_file_has_damages_of_its_name(tmp_path: Path, kind: str) -> None:
    of = target(tmp_path, KINDS[kind], recover=f"rm -rf {LOCK}", more=TABLE)
    facts = Locks().prepare(of, LocksOptions(), Ui(), never)
    assert facts.contents == {LOCK: kind}
    plans = [str(one) for one in Locks().plans(LocksOptions(), facts) if str(one).endswith(",held")]
    damages = {one.split(":")[2].partition(",")[0] for one in plans}
    assert {"missing", "fifo"} <= damages
    assert {"garbage", "inode", "elsewhere"}.isdisjoint(damages)
    assert ("loop" in damages) == (kind == "directory")
    result = run(of, f"lock:{LOCK}:missing,held")
    assert outcomes(result) == {"split-brain"}, shown(result)
    # What stands there keeps others out.
    assert "split-brain" not in outcomes(run(of, f"lock:{LOCK}:fifo,held"))


def test_a_lock_file_without_an_end_takes_no_memory_and_was_not_replaced(tmp_path: Path) -> None:
    launch = f'shift 2; mkdir -p {HOME}; truncate -s 4T {LOCK}; exec flock -n -o -E 9 {LOCK} {DIES} "$@"'
    result = run(target(tmp_path, launch, more=TABLE), f"lock:{LOCK}:inode,held")
    assert outcomes(result) == {"not-reached"}, shown(result)
    assert not result.error


WHO = f"echo $$ $(cat /proc/sys/kernel/random/boot_id) > {LOCK}"
# Whoever has written its pid has the box, unless that process is dead, or of another boot.
PID = f"""shift 2; mkdir -p {HOME}; if [ -s {LOCK} ]; then read pid boot < {LOCK}; kill -0 $pid && ALIVE && exit 9; fi
{WHO}; {DIES} "$@"; code=$?; rm -f {LOCK}; exit $code"""


@pytest.mark.parametrize(
    ("alive", "stuck"), [(":", True), ('[ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ]', False)]
)
def test_a_lock_of_another_boot_is_stale_whoever_has_its_pid(tmp_path: Path, alive: str, stuck: bool) -> None:
    of = target(tmp_path, PID.replace("ALIVE", alive), more=TABLE)
    facts = Locks().prepare(of, LocksOptions(profile="quick"), Ui(), never)
    assert "lock:another-boot" in [str(one) for one in Locks().plans(LocksOptions(profile="quick"), facts)]
    result = run(of, "lock:another-boot")
    # All may take a stale one at once: that is another fault of such a lock.
    assert ("wedged" in outcomes(result)) == stuck, shown(result)
    assert "not-reached" not in outcomes(result)


def test_a_lock_in_memory_has_no_next_boot(tmp_path: Path) -> None:
    memory = "/run/locks-test/box.lock"
    launch = f'shift 2; mkdir -p /run/locks-test; exec flock -n -o -E 9 {memory} {DIES} "$@"'
    of = target(tmp_path, launch, more=TABLE.replace(LOCK, memory))
    facts = Locks().prepare(of, LocksOptions(), Ui(), never)
    assert "lock:another-boot" not in [str(one) for one in Locks().plans(LocksOptions(), facts)]
    assert outcomes(run(of, "lock:another-boot")) == {"not-reached"}
    with pytest.raises(UsageError, match="'waiting' is no flag of it"):
        parse("lock:another-boot,waiting")


FLOCK = f'shift 2; mkdir -p {HOME}; exec flock -n -o -E 9 {LOCK} {DIES} "$@"'
# Whoever has renewed it within a second has the box.
LEASED = f"""shift 2; mkdir -p {HOME}; [ -z "$(find {LOCK} -newermt '1 second ago' 2> /dev/null)" ] || exit 9
: > {LOCK}; {DIES} "$@" & run=$!
while kill -0 $run 2> /dev/null; do touch {LOCK}; sleep 0.2; done; wait $run; code=$?; rm -f {LOCK}; exit $code"""


@pytest.mark.parametrize(("launch", "apart"), [(FLOCK, True), (LEASED, False)], ids=["flock", "lease"])
def test_a_lease_that_a_stopped_holder_does_not_renew_lets_others_in(tmp_path: Path, launch: str, apart: bool) -> None:
    of = target(tmp_path, launch, more=TABLE)
    assert run(of, "lock:stop-holder").verdict == "clean"
    result = run(of, "lock:outlast-holder")
    assert outcomes(result) == (set() if apart else {"split-brain"}), shown(result)


def test_the_quick_profile_damages_each_of_many_lock_files_and_not_in_every_way() -> None:
    files = [f"/run/{name}.lock" for name in "abcde"]
    facts = LockFacts(contents=dict.fromkeys(files, b"1234"), lasting=frozenset(files))
    quick, full = ([*Locks().plans(LocksOptions(profile=one), facts)] for one in ("quick", "full"))
    damages = [str(one) for one in quick if one.flags]
    assert len(damages) <= 48 < len([one for one in full if one.flags]) / 3
    for file in files:
        assert {one.rpartition(",")[2] for one in damages if file in one} == {"held", "stale", "free"}


def test_the_quick_profile_kills_at_some_points_of_many_locks_and_the_full_one_at_all() -> None:
    points = [Point("launch", "0", "lock", "/run/x.lock", number) for number in range(1, 200)]
    facts = LockFacts(points=[Recorded(one, "setup", "setup") for one in points])
    kills = {
        profile: [str(one) for one in Locks().plans(LocksOptions(profile=profile), facts) if "=launch:" in str(one)]  # type: ignore[arg-type]
        for profile in ("quick", "full")
    }
    assert len(kills["quick"]) <= 40
    for number in (1, 199):
        assert f"lock:kill=launch:0/lock(/run/x.lock)#{number}:before" in kills["quick"]
    assert {f"lock:kill=launch:{one}:before" for one in points} <= {*kills["full"]}
