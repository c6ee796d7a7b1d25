"""Processes that the oracle does not see: that never hold still, that hide, that look dead."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from tests.cases.conftest import INPUTS, Outcome
from tests.cases.places import Place, as_nobody, in_container

__all__ = ["as_nobody", "in_container"]

Case = Callable[..., Outcome]
Compiled = Callable[[str], Path]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def cage() -> Iterator[list[str]]:
    """Give the words before a command whose descendants all end with the test, however they flee (cgroups(7))."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not places or not (places[0] / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    cgroup = places[0] / own[4:] / f"leakcheck-cage-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"make a cgroup: {error}")
    try:
        yield ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh"]
    finally:
        end(cgroup)
        for below in [*cgroup.glob("*/"), cgroup]:
            below.rmdir()


def end(cgroup: Path) -> None:
    """End all that a cgroup holds: frozen, none of it flees.

    Not by cgroup.kill: it passes over a process whose first thread has ended (cgroup_kill() signals that thread
    alone), which kill(2) does not.
    """
    events = cgroup / "cgroup.events"
    while "populated 1" in events.read_text():
        (cgroup / "cgroup.freeze").write_text("1")
        wait_until("the cage is frozen", lambda: events.read_text() != "populated 1\nfrozen 0\n")
        for procs in cgroup.glob("**/cgroup.procs"):
            for pid in map(int, procs.read_text().split()):
                if pid > 1:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        (cgroup / "cgroup.freeze").write_text("0")
        time.sleep(0.01)


def guard(directory: Path, *argv: str | Path, before: Sequence[str] = ()) -> dict[str, object]:
    """Run ``leakcheck guard`` with `argv` and return its report."""
    report = directory / "report.json"
    command = [*before, sys.executable, "-m", "leakcheck", "guard", "--json", "-o", str(report), *map(str, argv)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False)
    found: dict[str, object] = json.loads(report.read_text())
    return found


def told(report: dict[str, object]) -> set[tuple[str, str]]:
    """Return kind and class of each leak."""
    return {(leak["kind"], leak["class"]) for leak in leaks(report)}


def leaks(report: dict[str, object]) -> list[dict[str, Any]]:
    """Return the leaks of a report."""
    found = report["leaks"]
    assert isinstance(found, list)
    return found


def classes_of_processes(report: dict[str, object]) -> set[str]:
    """Return the classes of leaked processes: of what else a host shows, some may be a neighbour's.

    Links that have ended count for nothing: how soon an orphan is waited for is for the machine's PID 1 to say.
    """
    found = [leak for leak in leaks(report) if leak["kind"] == "process"]
    return {
        leak["class"] for leak in found if leak["class"] == "respawning" or leak["evidence"]["resource"]["state"] != "Z"
    }


# Seconds that a chain goes on: until its cage or arena ends it, however long a busy machine takes to look.
LIFE = "3600"
PACES = pytest.mark.parametrize("pace", ["100000", "20000", "0"], ids=lambda pace: f"{pace} us")


def settle(pace: str) -> str:
    """Return a time to settle in, in which several of a chain live: one that all looks see is a mere orphan."""
    return str(max(0.1, int(pace) * 5 / 1e6))


HOW = ("vfork", "parent", "double", "thread", "exec", "cgroup")
# On a machine that such a chain fills with processes, a look takes long.
FULL = {("parent", "0", "host"), ("double", "0", "host")}
# A chain with a pace is tried by fork, and where the fast one takes long.
PACED = {(how, "20000", place) for how in HOW for place in ("host", "arena") if (how, "0", place) not in FULL}
WAYS = [
    pytest.param(*way, id="{}-{} us-{}".format(*way), marks=[pytest.mark.slow] if way in FULL | PACED else [])
    for way in itertools.product(HOW, ("20000", "0"), ("host", "arena"))
]


class TestRespawning:
    """A run that lives on in ever new processes is leaked, and clean never."""

    @root_only
    @PACES
    def test_a_chain_of_processes_is_leaked_on_the_host(
        self, compiled: Compiled, cage: list[str], tmp_path: Path, pace: str
    ) -> None:
        report = guard(tmp_path, "--settle", settle(pace), "--", compiled("chain.c"), LIFE, pace, before=cage)
        assert report["verdict"] == "leaked"
        assert classes_of_processes(report) == {"respawning"}

    @root_only
    @PACES
    def test_a_chain_of_processes_is_leaked_in_an_arena(self, compiled: Compiled, tmp_path: Path, pace: str) -> None:
        chain = compiled("chain.c")
        bind = ["--bind", f"{chain.parent}:/mnt:ro"]
        report = guard(tmp_path, "--arena", "--settle", settle(pace), *bind, "--", "/mnt/chain", LIFE, pace)
        assert told(report) == {("process", "respawning")}

    @root_only
    @pytest.mark.parametrize(("how", "pace", "place"), WAYS)
    def test_by_whatever_call_the_next_is_started_a_chain_is_leaked(
        self, compiled: Compiled, cage: list[str], tmp_path: Path, how: str, pace: str, place: str
    ) -> None:
        chains = compiled("chains.c")
        words = ["--arena", "--bind", f"{chains.parent}:/mnt:ro"] if place == "arena" else []
        program = "/mnt/chains" if place == "arena" else str(chains)
        report = guard(tmp_path, "--settle", "0.1", *words, "--", program, how, LIFE, pace, before=cage)
        if (how, place) == ("parent", "host"):
            # A child of PID 1 may be anybody's; one that no look caught makes it unknown.
            assert report["verdict"] == "unknown" or report["verdict"] == "leaked"
        else:
            assert classes_of_processes(report) == {"respawning"}

    @root_only
    def test_a_link_that_outlives_all_looks_is_told_as_one_of_a_chain(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        links = tmp_path / "links"
        links.touch()
        # The command ends when four of them have begun.
        begun = f"until [ $(wc -c < {links}) -ge 4 ]; do sleep 0.01; done"
        chain = f"{compiled('chains.c')} fork {LIFE} 1000000 {links}; {begun}"
        report = guard(tmp_path, "--settle", "0.01", "--kinds", "process", "--", "sh", "-c", chain, before=cage)
        assert classes_of_processes(report) == {"respawning"}

    @root_only
    def test_an_orphan_is_no_link_of_a_chain_that_is_somebody_elses(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        # Children of PID 1, by CLONE_PARENT: each of them may be the run's, whose orphan is one too.
        stranger = [*cage, compiled("chains.c"), "parent", LIFE, "20000"]
        subprocess.run(stranger, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=True)
        orphan = f"setsid sleep {LIFE} </dev/null >/dev/null 2>&1 & echo $! > {tmp_path}/pid"
        report = guard(tmp_path, "--settle", "0.1", "--kinds", "process", "--", "sh", "-c", orphan, before=cage)
        pid = int((tmp_path / "pid").read_text())
        classes = {leak["evidence"]["resource"]["pid"]: leak["class"] for leak in leaks(report)}
        assert classes[pid] == "orphaned"

    @root_only
    def test_a_process_that_flees_from_being_read_is_leaked_in_an_arena(
        self, compiled: Compiled, tmp_path: Path
    ) -> None:
        shy = compiled("shy.c")
        report = guard(
            tmp_path, "--arena", "--settle", "0.1", "--bind", f"{shy.parent}:/mnt:ro", "--", "/mnt/shy", LIFE
        )
        # It watches its own /proc, and is read through another.
        assert told(report) in ({("process", "respawning")}, {("process", "orphaned")})

    @root_only
    def test_a_shell_that_restarts_itself_every_ten_milliseconds_is_leaked(
        self, cage: list[str], tmp_path: Path
    ) -> None:
        report = guard(tmp_path, "--settle", "0.1", "--", "sh", INPUTS / "comet.sh", "0", before=cage)
        assert ("process", "respawning") in told(report)

    @root_only
    def test_a_chain_in_a_nested_pid_namespace_is_leaked(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        inside = f"{compiled('chain.c')} {LIFE} 3000; sleep {LIFE}"
        nested = f"unshare -pf sh -c '{inside}' </dev/null >/dev/null 2>&1 & sleep 0.3"
        report = guard(tmp_path, "--settle", "0.1", "--", "sh", "-c", nested, before=cage)
        assert report["verdict"] == "leaked"
        assert any(kind == "process" for kind, _ in told(report))

    @root_only
    @PACES
    def test_a_chain_that_leaves_a_tree_is_leaked(
        self, compiled: Compiled, cage: list[str], tmp_path: Path, pace: str
    ) -> None:
        go, gone = tmp_path / "go", tmp_path / "gone"
        # It waits without starting anything: only the chain is new.
        daemon = (
            "import os, subprocess, sys, time\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
            "subprocess.run(sys.argv[3:], stdin=subprocess.DEVNULL)\n"
            "open(sys.argv[2], 'w').close()\n"
            "time.sleep(60)\n"
        )
        argv = [*cage, sys.executable, "-c", daemon, str(go), str(gone), str(compiled("chain.c")), "60", pace]
        served = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            ask = f"touch {go}; until [ -e {gone} ]; do sleep 0.05; done"
            report = guard(tmp_path, "--scope", f"tree:{served.pid}", "--settle", settle(pace), "--", "sh", "-c", ask)
        finally:
            served.kill()
            served.wait()
        assert {kind for kind, _ in told(report)} == {"process"}

    def test_a_chain_is_leaked_where_neither_events_nor_a_cgroup_tell_of_it(
        self, request: pytest.FixtureRequest
    ) -> None:
        for place, words, program in [
            ("as_nobody", "--arena --bind /tmp/a:/mnt:ro", "/mnt/chain"),
            ("in_container", "", "/tmp/a/chain"),
        ]:
            call: Place = request.getfixturevalue(place)
            if place == "as_nobody" and call("unshare", "-U", "true").returncode != 0:
                # In a chroot, or where it is forbidden (user_namespaces(7)), an ordinary user has no arena.
                continue
            guards = (
                f"for n in 1 2 3; do "
                f"leakcheck guard --kinds process --settle 0.1 {words} -- {program} 3 0; echo exit $?; done"
            )
            before = f"mkdir /tmp/a; cc -O1 -o /tmp/a/chain {INPUTS / 'chain.c'}"
            done = call("sh", "-c", guards, before=before, timeout=200)
            assert re.findall(r"exit (\d)", done.stdout) == ["1"] * 3, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("shell", "others"),
        [
            ("bash", ""),
            pytest.param("dash", "", id="dash, by vfork"),
            # Then the guard rarely runs while PID 1 waits for its vfork.
            pytest.param(
                "dash", "for n in 1 2; do timeout 60 sh -c 'while :; do :; done' & done", id="dash, on a busy machine"
            ),
        ],
    )
    def test_what_pid_1_of_a_container_starts_all_the_time_is_no_chain_of_the_run(
        self, in_container: Place, shell: str, others: str
    ) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is missing")
        guards = (
            "for n in 1 2 3; do leakcheck guard --kinds process --settle 0.1 -- true; echo exit $?; done; "
            "touch /tmp/over"
        )
        busy = f"({guards}) </dev/null & until [ -e /tmp/over ]; do /bin/true; done"
        done = in_container(shell, "-c", busy, before=others, timeout=100)
        codes = re.findall(r"exit (\d)", done.stdout)
        assert len(codes) == 3 and set(codes) <= {"0", "3"}, done.stdout + done.stderr

    @root_only
    def test_a_chain_whose_processes_have_no_first_thread_is_leaked_in_a_cgroup(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        chains = compiled("chains.c")
        cgroup = cage[2].split()[3].removesuffix("/cgroup.procs") + "/scope"
        Path(cgroup).mkdir()
        begin = f"echo $$ > {cgroup}/cgroup.procs; exec {chains} thread {LIFE} 0"
        words = ["--scope", f"cgroup:{cgroup}", "--kinds", "process", "--settle", "0.1"]
        # A chain that goes on from one guard to the next would be there before.
        for _ in range(3):
            report = guard(tmp_path, *words, "--", "sh", "-c", begin, before=cage)
            end(Path(cgroup))
            # The last two looks may share one of them, which then is told as an orphan.
            assert report["verdict"] == "leaked" and classes_of_processes(report)

    @root_only
    @pytest.mark.parametrize("how", ["fork", "vfork", "thread"])
    def test_a_chain_in_a_cgroup_whose_ended_links_nobody_waits_for_is_told_as_a_chain(
        self, compiled: Compiled, cage: list[str], tmp_path: Path, how: str
    ) -> None:
        cgroup = cage[2].split()[3].removesuffix("/cgroup.procs") + "/scope"
        Path(cgroup).mkdir()
        report = tmp_path / "report.json"
        words = ["--json", "-o", str(report), "--scope", f"cgroup:{cgroup}", "--kinds", "process", "--settle", "0.1"]
        begin = f"echo $$ > {cgroup}/cgroup.procs; exec {compiled('chains.c')} {how} {LIFE} 1000"
        argv = [sys.executable, "-m", "leakcheck", "guard", *words, "--", "sh", "-c", begin]
        # The first process of the namespace waits for the guard alone.
        init = f"import subprocess; subprocess.run({argv!r}, stdin=subprocess.DEVNULL, timeout=60)"
        alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        subprocess.run([*cage, *alone, sys.executable, "-c", init], capture_output=True, timeout=100, check=True)
        end(Path(cgroup))
        found = json.loads(report.read_text())
        assert [(leak["kind"], leak["class"]) for leak in found["leaks"]] == [("process", "respawning")], found

    @root_only
    def test_a_tree_that_starts_and_waits_for_one_after_the_other_is_clean(self, tmp_path: Path) -> None:
        busy = "import subprocess\nwhile True: subprocess.run(['true'])\n"
        with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.DEVNULL) as daemon:
            try:
                report = guard(
                    tmp_path, "--scope", f"tree:{daemon.pid}", "--kinds", "process", "--settle", "0.3", "--", "true"
                )
            finally:
                daemon.kill()
        assert ("process", "respawning") not in told(report)

    def test_children_that_this_process_starts_and_waits_for_are_nobodys_chain(self) -> None:
        code = (
            "import leakcheck, subprocess, threading\n"
            "over = threading.Event()\n"
            "def work():\n"
            "    while not over.is_set(): subprocess.run(['true'])\n"
            "thread = threading.Thread(target=work)\n"
            "thread.start()\n"
            "try:\n"
            "    with leakcheck.guard(kinds='process', settle=0.2, on_unknown='ignore'): pass\n"
            "finally: over.set(); thread.join()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert "respawning" not in done.stderr, done.stderr


class TestHiding:
    """What is mounted over a process' directory, or over all of /proc, hides nothing."""

    @root_only
    @pytest.mark.parametrize("place", ["host", "arena"])
    def test_a_process_that_mounts_over_its_own_proc_directory_is_found(self, tmp_path: Path, place: str) -> None:
        words = ["--arena", "--bind", f"{INPUTS}:/mnt:ro"] if place == "arena" else []
        hider = ("/mnt" if place == "arena" else str(INPUTS)) + "/proc_pid_covered.py"
        # In a pid and mount namespace of its own nothing of it outlives the guard.
        alone = ["unshare", "-mpf", "--mount-proc", "--kill-child"]
        report = guard(tmp_path, "--settle", "0.1", *words, "--", "/usr/bin/python3", hider, before=alone)
        assert told(report) >= {("process", "orphaned"), ("mount", "orphaned")}

    @root_only
    def test_a_process_behind_another_proc_or_none_is_found_or_told_to_be_unseen(self, case: Case) -> None:
        outcome = case("unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "{proc_covered.sh}")
        assert outcome.text.count("\nexit 1 ") == 2, outcome.text

    @root_only
    def test_without_the_right_to_mount_what_is_covered_is_a_gap_of_processes(self, tmp_path: Path) -> None:
        script = (
            "sh -c 'mount -t tmpfs none /proc/$$; exec sleep 20' </dev/null >/dev/null 2>&1 & sleep 0.5; "
            "setpriv --bounding-set -sys_admin --inh-caps -sys_admin "
            f"leakcheck guard --kinds process --json -o {tmp_path}/report.json --settle 0.1 -- true"
        )
        alone = ["unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-c", script]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(alone, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, env=env)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["verdict"] == "unknown"
        assert "covers" in report["coverage"]["process"]["reason"]


class TestDeadLeader:
    """A process whose first thread has ended is alive as long as another one is."""

    @root_only
    def test_it_is_no_zombie_and_what_it_holds_is_read_through_a_thread_that_lives(
        self, compiled: Compiled, cage: list[str], tmp_path: Path
    ) -> None:
        report = guard(tmp_path, "--settle", "0.1", "--", compiled("zl.c"), before=cage)
        assert told(report) == {("process", "orphaned")}
        (leak,) = [leak for leak in leaks(report) if leak["kind"] == "process"]
        assert "whose first thread has ended" in leak["label"]
        assert leak["evidence"]["resource"]["state"] != "Z"
        assert leak["evidence"]["exe"].endswith("/zl")
        done = subprocess.run(
            [sys.executable, "-m", "leakcheck", "reap", "--yes", "--diff", str(tmp_path / "report.json")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "done" in done.stdout + done.stderr, done.stdout + done.stderr
        pid = leak["evidence"]["resource"]["pid"]
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or ") Z" in stat.read_text()

    @root_only
    def test_its_lock_and_socket_have_a_holder_in_an_arena_too(self, tmp_path: Path) -> None:
        words = ["--arena", "--bind", f"{INPUTS}:/mnt:ro", "--settle", "0.1"]
        report = guard(tmp_path, *words, "--", "/usr/bin/python3", "/mnt/dead_leader.py", "30")
        assert {kind for kind, _ in told(report)} >= {"process", "lock", "net"}
        (lock,) = [leak for leak in leaks(report) if leak["kind"] == "lock"]
        assert "held through fd" in lock["evidence"]["who"]


class TestScopes:
    """A part of the machine: what it had is no leak, and what has left it is none the less its own."""

    @pytest.fixture
    def box(self) -> Iterator[Path]:
        """A v1 cgroup; what is in it ends with the test."""
        place = Path("/sys/fs/cgroup/pids")
        if os.geteuid() != 0 or not (place / "cgroup.procs").exists():
            pytest.skip("needs root, and a v1 hierarchy of the pids controller")
        box = place / f"leakcheck-case-{os.getpid()}"
        box.mkdir()
        yield box
        for pid in (box / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        while (box / "cgroup.procs").read_text():
            time.sleep(0.01)
        box.rmdir()

    def test_the_namespaces_of_the_host_are_no_leak_of_a_cgroup(self, box: Path, tmp_path: Path) -> None:
        command = f"sleep 60 </dev/null >/dev/null 2>&1 & echo $! > {box}/cgroup.procs"
        report = guard(tmp_path, "--scope", f"cgroup:{box}", "--settle", "0.1", "--", "sh", "-c", command)
        assert told(report) == {("process", "orphaned")}
        assert len(leaks(report)) == 1
        assert not report["noise"]

    def test_a_stream_from_another_mount_namespace_is_no_mount_of_a_cgroup(self, box: Path, tmp_path: Path) -> None:
        command = f"sleep 60 >/dev/null & echo $! > {box}/cgroup.procs"
        inner = [sys.executable, "-m", "leakcheck", "guard", "--scope", f"cgroup:{box}", "--settle", "0.1", "--json"]
        with (tmp_path / "stderr").open("w") as stderr:
            words = ["unshare", "--mount", *inner, "--", "sh", "-c", command]
            done = subprocess.run(words, stdin=stderr, stdout=subprocess.PIPE, stderr=stderr, timeout=60, check=False)
        assert [leak["kind"] for leak in json.loads(done.stdout)["leaks"]] == ["process"]

    @root_only
    def test_what_a_daemon_had_started_before_it_died_is_found(self, cage: list[str], tmp_path: Path) -> None:
        go = tmp_path / "go"
        box = f"until [ -e {go} ]; do sleep 0.05; done; setsid sleep 60 </dev/null >/dev/null 2>&1 & kill -KILL $$"
        run = f"touch {go}; while [ -e /proc/$0/exe ]; do sleep 0.05; done"
        daemon = subprocess.Popen([*cage, "sh", "-c", box], stdin=subprocess.DEVNULL)
        try:
            report = guard(
                tmp_path, "--scope", f"tree:{daemon.pid}", "--settle", "0.1", "--", "sh", "-c", run, str(daemon.pid)
            )
        finally:
            daemon.kill()
            daemon.wait()
        assert ("process", "orphaned") in told(report)

    @root_only
    def test_what_a_daemon_does_after_the_first_look_is_found(self, cage: list[str], tmp_path: Path) -> None:
        act = "sleep 0.2; sleep 60 </dev/null >/dev/null 2>&1 &"
        script = f"trap '{act}' USR1; echo; while :; do sleep 0.01; done"
        with subprocess.Popen([*cage, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as daemon:
            assert daemon.stdout
            daemon.stdout.readline()
            scope = f"tree:{daemon.pid}"
            report = guard(tmp_path, "--scope", scope, "--settle", "1", "--", "kill", "-USR1", str(daemon.pid))
            daemon.kill()
        assert ("process", "orphaned") in told(report)

    @root_only
    def test_a_tree_whose_first_process_ends_is_never_clean(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "60"]) as daemon:
            report = guard(tmp_path, "--scope", f"tree:{daemon.pid}", "--settle", "0.1", "--", "kill", str(daemon.pid))
        assert report["verdict"] == "unknown"
