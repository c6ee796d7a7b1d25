"""An arena in which something is frozen, stopped or held is reported, ends, and leaves nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, wait_until

from leakcheck.arena import Arena
from leakcheck.warden import shutdown

FREEZER = Path("/sys/fs/cgroup/freezer")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
v1 = pytest.mark.skipif(not os.access(FREEZER, os.W_OK), reason="no v1 freezer is mounted here")

GUARD = ["leakcheck", "guard", "--arena", "--settle", "0.1"]
# Freezes $1 below the arena's own cgroup, which is made if need be, with a process in it.
FREEZE = """cd /sys/fs/cgroup/freezer; mkdir -p $1; sleep 300 </dev/null >/dev/null 2>&1 & echo $! > $1/cgroup.procs
echo FROZEN > $1/freezer.state"""
# Freezes PID 1 repeatedly, in a process that changes its pid all the time.
FREEZE_INIT = """import os
if os.fork(): os._exit(0)
os.setsid()
os.chdir('/sys/fs/cgroup/freezer'); os.mkdir('pit')
while True:
    for name, text in (('pit/cgroup.procs', '1'), ('pit/freezer.state', 'FROZEN')):
        try: open(name, 'w').write(text)
        except OSError: pass
    if os.fork(): os._exit(0)
"""


def own_cgroups(warden_or_owner: int) -> set[Path]:
    """The cgroups of arenas that hold a descendant of a process."""
    tree = {str(warden_or_owner)}
    for _ in range(4):
        tree |= {p for t in tree for p in _children(t)}
    found = set()
    # Another suite's cgroups may go meanwhile.
    for path, _, _ in os.walk("/sys/fs/cgroup"):
        with suppress(OSError):
            if Path(path).name.startswith("leakcheck-arena-") and tree & _processes(path):
                found.add(Path(path))
    return found


def _processes(cgroup: str) -> set[str]:
    return set(Path(cgroup, "cgroup.procs").read_text().split())


def _children(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []


def named_by_pidfds(holder: int) -> set[str]:
    """The names of the processes that a process holds descriptors of."""
    names = set()
    for info in Path(f"/proc/{holder}/fdinfo").iterdir():
        with suppress(OSError):
            for line in info.read_text().splitlines():
                if line.startswith("Pid:"):
                    names.add(Path(f"/proc/{line.split()[1]}/comm").read_text().strip())
    return names


def lives(pid: int) -> bool:
    """Whether a process is there, and not only waits for a parent of the machine's to take its status."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@v1
def test_a_frozen_cgroup_is_reported_and_goes(case: Callable[..., Any]) -> None:
    seen = case(*GUARD, "--bind", "{frozen.sh}:/mnt/frozen.sh:ro", "--", "sh", "/mnt/frozen.sh")
    assert seen.code == 1
    # It may be frozen before it executes its program.
    assert re.search(r"process 4 \((sleep|sh)\)", seen.text) and "cgroup freezer /pb-frozen" in seen.text
    assert "remove the arena" not in seen.text


@v1
@pytest.mark.parametrize(
    "script", ["set a/b/c; ", "set a; ", "set a/b; (sleep 0.3; echo FROZEN > /sys/fs/cgroup/freezer/freezer.state) & "]
)
def test_nested_frozen_cgroups_and_the_arenas_own_go(script: str) -> None:
    with Arena() as arena:
        with arena.popen(["/bin/sh", "-c", script + FREEZE, "sh"]) as process:
            assert process.wait(PATIENCE) == 0
        cgroups = list(arena.cgroups.values())
        if "sleep" in script:
            state = Path(arena.cgroups["freezer"], "freezer.state")
            wait_until("the arena's own freezer is frozen", lambda: "FROZEN" in state.read_text())
        pids = arena.pids()
    assert not [cgroup for cgroup in cgroups if Path(cgroup).exists()]
    assert not [pid for pid in pids if lives(pid)]


@v1
def test_pid_1_frozen_again_and_again_by_one_who_forks_on_goes() -> None:
    arena = Arena().up()
    try:
        assert arena.run(["/usr/bin/python3", "-c", FREEZE_INIT]) == 0
        time.sleep(0.3)
        cgroups = list(arena.cgroups.values())
    finally:
        arena.down()
    assert not [cgroup for cgroup in cgroups if Path(cgroup).exists()]


@v1
@pytest.mark.parametrize("whom", ["owner", "owner and warden"])
def test_a_frozen_arena_goes_when_leakcheck_is_killed(whom: str) -> None:
    script = (
        "from leakcheck.arena import Arena\nimport os,time\na=Arena().up()\n"
        f"a.run(['/bin/sh','-c',{('set a/b; ' + FREEZE)!r}])\n"
        "print(a._warden.pid, *a.cgroups.values(), flush=True)\ntime.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert owner.stdout
    with owner, owner.stdout:
        warden, *cgroups = owner.stdout.readline().split()
        pidfd = os.pidfd_open(int(warden))
        pids = [int(pid) for procs in Path(cgroups[0]).glob("**/cgroup.procs") for pid in procs.read_text().split()]
        assert len(pids) == 3, "spawner, init and the frozen one"
        owner.kill()
        if whom != "owner":
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    if whom != "owner":
        assert Path(cgroups[0]).exists(), "nobody is there to thaw it"
        # The next start does.
        shutdown()
        with Arena():
            pass
    wait_until("its cgroups go", lambda: not any(Path(cgroup).exists() for cgroup in cgroups))
    assert not [pid for pid in pids if lives(pid)]


FREEZERS = [
    pytest.param(FREEZER, "freezer.state", "FROZEN", marks=v1, id="v1"),
    pytest.param(Path("/sys/fs/cgroup/unified"), "cgroup.freeze", "1", id="v2 of a hybrid host"),
    pytest.param(Path("/sys/fs/cgroup"), "cgroup.freeze", "1", id="v2"),
]


@pytest.mark.parametrize(("hierarchy", "file", "word"), FREEZERS)
def test_sigterm_ends_a_guard_whose_command_is_frozen(tmp_path: Path, hierarchy: Path, file: str, word: str) -> None:
    if file == "cgroup.freeze" and not (hierarchy / "cgroup.controllers").exists():
        pytest.skip(f"no v2 hierarchy is mounted on {hierarchy}")
    freeze = f"echo {word} > {hierarchy / file}"
    with (tmp_path / "said").open("wb") as said:
        guard = subprocess.Popen(
            [sys.executable, "-m", *GUARD, "--", "sh", "-c", f"echo ready; read _; {freeze}"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            cwd="/",
        )
        try:
            wait_until("the command runs", lambda: b"ready" in (tmp_path / "said").read_bytes())
            wait_until("the start was told", lambda: "sh" in named_by_pidfds(guard.pid))
            mine = own_cgroups(guard.pid)
            assert guard.stdin
            guard.stdin.write(b"\n")
            guard.stdin.close()
            state = next(cgroup for cgroup in mine if hierarchy in cgroup.parents) / file
            wait_until("the command is frozen", lambda: word in state.read_text())
            guard.terminate()
            assert guard.wait(PATIENCE) == 130
        finally:
            guard.kill()
            guard.wait()
    assert mine and not [cgroup for cgroup in mine if cgroup.exists()]


@pytest.mark.parametrize("where", ["", "/own"])
@pytest.mark.parametrize("first", ["", "sleep 0.3; "], ids=["at once", "later"])
@pytest.mark.parametrize(("hierarchy", "file", "word"), FREEZERS)
def test_a_command_that_freezes_itself_gets_a_verdict(
    case: Callable[..., Any], hierarchy: Path, file: str, word: str, first: str, where: str
) -> None:
    if file == "cgroup.freeze" and not (hierarchy / "cgroup.controllers").exists():
        pytest.skip(f"no v2 hierarchy is mounted on {hierarchy}")
    top = f"{hierarchy}{where}"
    enter = f"mkdir {top}; echo $$ > {top}/cgroup.procs; " if where else ""
    began = time.monotonic()
    seen = case(*GUARD, "--", "sh", "-c", f"{first}{enter}echo {word} > {top}/{file}; echo th''awed")
    assert seen.code == 1, seen.text
    assert "(sh): sh -c" in seen.text and "thawed" not in seen.text, seen.text
    assert (f"cgroup {'v2' if word == '1' else 'freezer'} /own" if where else "changed") in seen.text, seen.text
    assert "remove the arena" not in seen.text
    # Where a start is held up for longer than this, the spawner gives up.
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("hierarchy", "file", "word"), FREEZERS)
def test_a_recovery_does_not_wait_for_an_arena_that_the_run_froze(
    case: Callable[..., Any], hierarchy: Path, file: str, word: str
) -> None:
    if file == "cgroup.freeze" and not (hierarchy / "cgroup.controllers").exists():
        pytest.skip(f"no v2 hierarchy is mounted on {hierarchy}")
    freeze = f"(echo {word} > {hierarchy / file}) >/dev/null 2>&1 & exit 0"
    seen = case(*GUARD, "--recover", "true", "--", "sh", "-c", freeze)
    assert "leaked," in seen.text and "the arena is frozen" in seen.text, seen.text
    assert seen.code == 4


def test_stopped_and_traced_processes_and_a_v2_freezer_hold_nothing_up() -> None:
    with Arena() as arena:
        unified = arena.cgroups.get("v2", "")
        script = (
            "sleep 300 & kill -STOP $!; set -- /sys/fs/cgroup /sys/fs/cgroup/unified\n"
            "for d; do [ -e $d/cgroup.freeze ] || continue\n"
            "mkdir -p $d/cold/er; sleep 300 & echo $! > $d/cold/er/cgroup.procs\n"
            "echo 1 > $d/cold/cgroup.freeze; echo 1 > $d/cold/er/cgroup.freeze; done; true"
        )
        assert arena.run(["/bin/sh", "-c", script], stdout=subprocess.DEVNULL) == 0
        if unified:
            assert Path(unified, "cold", "er").exists()
        begun = time.monotonic()
    # What cannot be ended is waited for 10 s.
    assert time.monotonic() - begun < 10
    assert not unified or not Path(unified).exists()


@pytest.mark.slow
def test_what_hangs_in_the_kernel_is_waited_for_in_bounds_and_named(case: Callable[..., Any]) -> None:
    # A request to a server that has taken it and never answers outlives SIGKILL.
    script = """mount -t tmpfs none /srv; cd /srv; mkdir m; python3 {fuse_hang.py} m hang & sleep 1
        leakcheck guard --arena --bind /srv/m:/mnt:ro --settle 0.1 -- sh -c 'stat /mnt >/dev/null 2>&1 & sleep 1'
        echo exit $?"""
    own = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    begun = time.monotonic()
    seen = case("unshare", *own, "sh", "-c", script, timeout=60)
    assert seen.exits[-1] == 1, seen.text
    assert "remove the arena: arena: SIGKILL did not end" in seen.text and "(stat, D)" in seen.text, seen.text
    assert seen.text.index("leaked,") < seen.text.index("remove the arena")
    assert time.monotonic() - begun < 30
