"""A traced command does what it does untraced; its crash points have the same names in every run; kills hit them.

The same holds for one whose calls seccomp reports, as far as it goes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, wait_until

from injectors.crash import Point, Victim, When, recording, request
from leakcheck.arena import Arena, Process, Trace
from leakcheck.errors import ArenaError, TargetError
from leakcheck.trials.calls import Call, Ended, calls_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

ODD = Path(__file__).parent / "inputs" / "odd.c"


class Traced:
    """Runs commands in an arena, traced or notified; `log` is what the tracer reported of the last one."""

    def __init__(self, arena: Arena, *, notified: bool = False) -> None:
        self.arena, self.notified = arena, notified
        self.log = -1

    def start(self, argv: list[str], request: Any = None) -> Process:
        self.log = os.memfd_create("log")
        trace = Trace({**(request or recording(0, [])), "notified": self.notified}, self.log)
        return self.arena.popen(argv, trace=trace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, argv: list[str], request: Any = None) -> int:
        with self.start(argv, request) as process:
            return process.wait(PATIENCE)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in os.pread(self.log, 1 << 24, 0).splitlines()]

    @property
    def points(self) -> list[str]:
        found = [line for line in self.lines if "operation" in line]
        return [str(Point("launch", one["role"], one["operation"], one["class"], one["ordinal"])) for one in found]


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> Generator[Traced, None, None]:
    with Arena() as arena:
        yield Traced(arena, notified=getattr(request, "param", False))


BOTH = pytest.mark.parametrize("traced", [False, True], ids=["traced", "notified"], indirect=True)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("odd") / "odd"
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, ODD], check=True)
    return program


ODDITIES = {
    "int80": ["0/mkdir(/tmp/by-int-eighty)#1"],
    "vfork": ["0/clone#1", "0.1/execve(/bin/mkdir)#1", "0.1/mkdir(/tmp/by-vfork)#1"],
    "untraced": ["0/clone#1", "0.1/mkdir(/tmp/by-untraced)#1"],
    "clone3": ["0/clone#1", "0.1/mkdir(/tmp/by-clone-three)#1"],
    "thread-exec": ["0/execve(/bin/mkdir)#1", "0/mkdir(/tmp/by-thread)#1"],
    "raw-exit": ["0/clone#1", "0.1/exit#1", "0/exit#1"],
    "raw-thread": ["0/mkdir(/tmp/by-raw-thread)#1", "0/clone#1", "0.1/mkdir(/tmp/by-its-child)#1"],
    "group-stop": ["0/clone#1", "0.1/mkdir(/tmp/by-continued)#1"],
    "page-end": ["0/mkdir(/tmp/across-pages)#1", "0/mkdir(/tmp/by-page-end)#1"],
    "filtered": ["0/mkdir(/tmp/by-filtered)#1"],
    "signals": ["0.200/kill(SIGUSR1)#1", "0/mkdir(/tmp/by-signals)#1"],
}


@pytest.mark.parametrize("notified", [False, True])
@pytest.mark.parametrize("how", ODDITIES)
def test_calls_that_are_hard_to_trace_are_points_and_do_what_they_do_untraced(
    how: str, odd: Path, notified: bool
) -> None:
    with Arena(binds=[(odd.parent, "/mnt", True)]) as arena:
        traced = Traced(arena, notified=notified)
        assert traced.run(["/mnt/odd", how]) == 0, traced.lines
        assert set(ODDITIES[how]) <= set(traced.points)
        # The end of a thread is none, if another one of its process lives.
        assert "0/exit#2" not in traced.points


@pytest.mark.parametrize("notified", [False, True])
def test_of_threads_that_end_at_the_same_time_exactly_one_is_a_point(odd: Path, notified: bool) -> None:
    with Arena(binds=[(odd.parent, "/mnt", True)]) as arena:
        traced = Traced(arena, notified=notified)
        assert traced.run(["/mnt/odd", "exits-at-once"]) == 0, traced.lines
        ends = [point for point in traced.points if "/exit#" in point]
        assert ends == [*(f"0.{number}/exit#1" for number in range(1, 41)), "0/exit#1"]


@pytest.fixture(scope="module")
def i386(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("i386") / "i386"
    flags = ["-m32", "-O1", "-nostdlib", "-static", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector"]
    if shutil.which("cc") is None or subprocess.run(["cc", *flags, "-o", program, ODD.with_name("i386.c")]).returncode:
        pytest.skip("no C compiler for i386")
    return program


def test_a_32_bit_program_has_the_same_points_through_its_multiplexers_too(i386: Path) -> None:
    payload = ["/bin/sh", "-c", "exit 0"]
    with Arena(binds=[(i386.parent, "/mnt", True)]) as arena:
        traced = Traced(arena)
        assert traced.run(["/mnt/i386"], recording(0, payload, every=True)) == 0, traced.lines
        assert traced.points == [
            "0/mkdir(/tmp/by-i-three)#1",
            "0/open(/tmp/by-i-three/file)#1",
            "0/write(/tmp/by-i-three/file)#1",
            "0/truncate(/tmp/by-i-three/file)#1",
            "0/bind#1",
            "0/shmget#1",
            "0/shmctl#1",
            "0/clone#1",
            "0.1/mkdir(/tmp/by-its-child)#1",
            "0.1/exit#1",
            "0/execve(/bin/sh)#1",
        ]
        assert {"payload": "0"} in traced.lines


def test_a_helper_with_the_set_user_id_bit_has_its_rights_while_it_is_traced(traced: Traced) -> None:
    arena = traced.arena
    arena.run(["/bin/sh", "-c", "cp /bin/mkdir /opt/helper; chmod 4755 /opt/helper; mkdir -m 700 /opt/of-root"])
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert arena.run([*user, "/bin/mkdir", "/opt/of-root/by-user"], stderr=subprocess.DEVNULL) == 1
    assert arena.run([*user, "/opt/helper", "/opt/of-root/untraced"]) == 0
    assert traced.run([*user, "/opt/helper", "/opt/of-root/traced"]) == 0
    assert "0/mkdir(/opt/of-root/traced)#1" in traced.points
    # As a payload, too: it runs without stops.
    payload = ["/opt/helper", "/opt/of-root/by-payload"]
    assert traced.run([*user, *payload], recording(0, payload)) == 0
    assert {"payload": "0"} in traced.lines
    assert not any("by-payload" in point for point in traced.points)


def test_writes_and_messages_are_points_if_every_one_is_asked_for(traced: Traced) -> None:
    program = """
import os, socket
one, other = socket.socketpair()
one.send(b"x")
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).sendto(bytes(16), (0, 0))
out = os.open("/tmp/written", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(out, b"a"), os.pwrite(out, b"b", 1), os.writev(out, [b"c"]), os.ftruncate(out, 2)
os.write(os.pipe()[1], b"x"), os.write(1, b"to the output"), os.write(os.open("/dev/null", os.O_WRONLY), b"x")
os.sendfile(out, os.open("/etc/passwd", os.O_RDONLY), 0, 10)
"""
    command = [sys.executable, "-SIc", program]
    written = ["write(/tmp/written)#1", "write(/tmp/written)#2", "write(/tmp/written)#3", "write(/tmp/written)#4"]
    assert traced.run(command, recording(0, [], every=True)) == 0
    points = [point.removeprefix("0/") for point in traced.points if re.search("write|send", point)]
    assert points == ["send(unix)#1", "send(netlink)#1", *written]
    assert traced.run(command) == 0
    assert not re.search("write|send", str(traced.points))
    # A plan needs no word more than the point.
    plan = request(0, [], Point("launch", "0", "write", "/tmp/written", 2), "before", "supervisor", quiesced=False)
    assert traced.run(command, plan) == -9
    assert traced.arena.run(["/bin/sh", "-c", '[ "$(cat /tmp/written)" = a ]']) == 0


def test_calls_on_attributes_times_and_names_are_points(traced: Traced) -> None:
    program = """
import os, socket
open("/tmp/attributes", "w").close()
for call in (
    lambda: os.utime("/tmp/attributes"),
    lambda: os.setxattr("/tmp/attributes", "user.a", b"x"),
    lambda: os.removexattr("/tmp/attributes", "user.a"),
    lambda: os.posix_fallocate(os.open("/tmp/attributes", os.O_WRONLY), 0, 10),
    lambda: socket.sethostname("name"),
    lambda: os.setpgid(0, 0),
):
    try:
        call()
    except OSError:
        pass
"""
    traced.run([sys.executable, "-SIc", program])
    operations = [point.removeprefix("0/").partition("#")[0] for point in traced.points]
    assert operations[-9:] == [
        *["open(/tmp/attributes)", "utime(/tmp/attributes)", "setxattr(/tmp/attributes)"],
        *["removexattr(/tmp/attributes)", "open(/tmp/attributes)", "fallocate(/tmp/attributes)"],
        *["sethostname", "setpgid", "exit"],
    ]


def test_a_program_that_traces_itself_is_reported(odd: Path) -> None:
    with Arena(binds=[(odd.parent, "/mnt", True)]) as arena:
        traced = Traced(arena)
        traced.run(["/mnt/odd", "traces"])
        assert any("calls ptrace itself" in line.get("note", "") for line in traced.lines)


TRACERS = {
    "traces": [],
    "traced-by-filter": ["its filter for ptrace is refused (EINVAL), so that ptrace sees all calls"],
    "watches": ["it watches calls of others itself (seccomp user notification), which fails while its own are"],
}


@pytest.mark.parametrize("how", TRACERS)
def test_a_notified_program_may_trace_and_what_it_may_not_is_reported(how: str, odd: Path) -> None:
    with Arena(binds=[(odd.parent, "/mnt", True)]) as arena:
        traced = Traced(arena, notified=True)
        assert traced.run(["/mnt/odd", how]) == 0, traced.lines
        notes = [line["note"].partition(": ")[2] for line in traced.lines if "note" in line]
        assert notes == TRACERS[how]
        assert (how == "traced-by-filter") == ("0.1/mkdir(/tmp/by-its-tracer)#1" in traced.points)


def test_signals_of_other_processes_of_the_run_interrupt_no_notified_call(traced: Traced) -> None:
    cgroups = Path(f"/proc/{traced.arena.spawner}/cgroup").read_text().splitlines()
    if not any(":cpu" in line and not line.endswith(":/") for line in cgroups):
        pytest.skip("arenas have no cgroup of the controller cpu here, so the scheduler may put off the spawner")
    traced.notified = True
    # A shell handles SIGCHLD without SA_RESTART, and gives up if fork(2) fails.
    script = "i=0; while [ $i -lt 200 ]; do : > /tmp/at & i=$((i+1)); done; wait"
    plan = {**recording(0, []), "cpu": min(os.sched_getaffinity(0))}
    assert traced.run(["/bin/sh", "-c", script], plan) == 0


SCRIPT = "mkdir /tmp/leak-abc; (mkdir /tmp/below; rmdir /tmp/below) & wait; rmdir /tmp/leak-abc"


def test_two_runs_have_the_same_points_in_the_same_order_traced_or_notified(traced: Traced) -> None:
    assert traced.run(["/bin/sh", "-c", SCRIPT]) == 0
    first = traced.points
    for traced.notified in (False, True):
        assert traced.run(["/bin/sh", "-c", SCRIPT]) == 0
        assert first == traced.points
    assert "0.1/mkdir(/tmp/leak-abc)#1" in first
    assert "0.2.1/mkdir(/tmp/below)#1" in first


@pytest.mark.parametrize("quiesced", [False, True])
@pytest.mark.parametrize(
    ("when", "made", "traced"),
    [("before", False, False), ("after", True, False), ("before", False, True)],
    indirect=["traced"],
)
def test_a_kill_before_or_after_a_call_finds_it_not_done_or_done(
    traced: Traced, when: When, made: bool, quiesced: bool
) -> None:
    point = Point("launch", "0.1", "mkdir", "/tmp/leak-abc", 1)
    plan = request(0, [], point, when, "helper", quiesced=quiesced)
    traced.run(["/bin/sh", "-c", "mkdir /tmp/leak-abc; true"], plan)
    assert [line["fired"] for line in traced.lines if "fired" in line] == ["setup"]
    assert (traced.arena.run(["/bin/sh", "-c", "test -d /tmp/leak-abc"]) == 0) is made


# Exit code of the command, whether the call of the process at the point happened, whether the payload lives.
VICTIMS: dict[Victim, tuple[int, bool, bool]] = {
    "supervisor": (-9, True, True),
    "helper": (0, False, True),
    "all": (-9, False, True),
    "tree": (-9, False, False),
    "freeze": (-9, False, False),
}


@BOTH
@pytest.mark.parametrize("victim", VICTIMS)
def test_each_victim_is_killed_and_the_others_run_on(traced: Traced, victim: Victim) -> None:
    code, done, lives = VICTIMS[victim]
    payload = ["sleep", "612"]
    point = Point("launch", "0.2", "mkdir", "/tmp/at", 1)
    plan = request(0, payload, point, "before", victim, quiesced=True)
    assert traced.run(["/bin/sh", "-c", "sleep 612 & mkdir /tmp/at; exit 0"], plan) == code
    if done:
        wait_until("the directory", lambda: traced.arena.run(["/bin/sh", "-c", "test -d /tmp/at"]) == 0)
    else:
        assert traced.arena.run(["/bin/sh", "-c", "test -d /tmp/at"]) == 1
    if lives:
        assert traced.arena.pids()
    else:
        # Who got a signal is still there for an instant.
        wait_until("the end of all", lambda: not traced.arena.pids())


FORKS = "i=0; while [ $i -lt 300 ]; do sleep 611 & i=$((i+1)); done"


@pytest.mark.parametrize(
    ("traced", "victim", "payload"),
    [
        (False, "freeze", ["/bin/sh", "-c", FORKS]),
        (False, "freeze", ["sleep", "612"]),
        (False, "tree", ["/bin/sh", "-c", FORKS]),
        (False, "all", ["sleep", "612"]),
        # Of one that is notified it is known only after the first signal.
        (True, "freeze", ["/bin/sh", "-c", FORKS]),
        (True, "freeze", ["sleep", "612"]),
    ],
    indirect=["traced"],
)
def test_what_a_victim_creates_at_the_instant_of_the_kill_is_killed_too(
    traced: Traced, victim: Victim, payload: list[str]
) -> None:
    point = Point("launch", "0.3", "mkdir", "/tmp/at", 1)
    plan = request(0, payload, point, "before", victim, quiesced=False)
    kills = 0
    for _ in range(12):
        with Arena() as arena:
            each = Traced(arena, notified=traced.notified)
            code = each.run(["/bin/sh", "-c", f"/bin/sh -c '{FORKS}' & sleep 0.03; mkdir /tmp/at"], plan)
            kills += code == -9
            if code == -9:
                # Who got a signal is still there for an instant.
                wait_until("the end of all", lambda: not arena.pids())
    assert kills == 12


@pytest.mark.parametrize("traced", [True], indirect=True)
@pytest.mark.parametrize("by_payload", [False, True])
def test_of_a_notified_run_each_of_very_many_processes_is_killed_though_their_creator_has_ended(
    traced: Traced, *, by_payload: bool
) -> None:
    # More than are held by descriptors; each has a life of its own once the shell has ended.
    payload = ["/bin/sh", "-c", FORKS] if by_payload else ["sleep", "612"]
    point = Point("launch", "0.2", "mkdir", "/tmp/at", 1)
    plan = request(0, payload, point, "before", "freeze", quiesced=False)
    code = traced.run(["/bin/sh", "-c", f"/bin/sh -c '{FORKS}'; mkdir /tmp/at; exit 0"], plan)
    assert code == -9
    wait_until("the end of all", lambda: not traced.arena.pids())


@pytest.mark.parametrize("victim", ["freeze", "all"])
def test_what_another_run_creates_at_the_instant_of_the_kill_runs_on(traced: Traced, victim: Victim) -> None:
    # It fails if one of its children is killed.
    creates = "i=0; while [ $i -lt 600 ]; do /bin/true || exit 7; i=$((i+1)); done"
    point = Point("launch", "0.1", "mkdir", "/tmp/at", 1)
    plan = request(0, ["sleep", "612"], point, "before", victim, quiesced=False)
    with traced.start(["/bin/sh", "-c", creates]) as other:
        for _ in range(12):
            assert traced.run(["/bin/sh", "-c", "mkdir /tmp/at; exit 0"], plan) == -9
        assert other.wait(PATIENCE) == 0


@BOTH
@pytest.mark.parametrize("quiesced", [False, True])
def test_of_a_command_that_has_ended_the_process_at_the_point_is_killed(traced: Traced, quiesced: bool) -> None:
    point = Point("launch", "0.1", "mkdir", "/tmp/late", 1)
    plan = request(0, [], point, "before", "supervisor", quiesced=quiesced)
    script = "(while [ -e /proc/$$ ]; do :; done; exec mkdir /tmp/late) & exec true"
    assert traced.run(["/bin/sh", "-c", script], plan) == 0
    wait_until("the end of the child", lambda: not traced.arena.pids())
    assert traced.arena.run(["/bin/sh", "-c", "test -d /tmp/late"]) == 1
    assert any("fired" in line for line in traced.lines)


@BOTH
def test_quiesced_the_process_at_the_point_goes_on_once_who_is_killed_has_ended(traced: Traced) -> None:
    python = Path("/usr/bin/python3")  # Another one may be a script that starts it.
    if not python.exists():
        pytest.skip(f"no {python}")
    # It takes a while to end, since it has to free its memory.
    script = "import subprocess as s; m = bytearray(b'x') * (150 << 20); "
    script += (
        "s.run(['/bin/sh', '-c', 'mkdir /tmp/at; read -r _ _ state _ < /proc/$PPID/stat; echo $state > /tmp/seen'])"
    )
    point = Point("launch", "0.1.1", "mkdir", "/tmp/at", 1)
    plan = request(0, [], point, "before", "supervisor", quiesced=True)
    assert traced.run([str(python), "-c", script], plan) == -9
    wait_until("the end of the child", lambda: not traced.arena.pids())
    assert traced.arena.run(["/bin/sh", "-c", "case $(cat /tmp/seen) in '' | Z | X) ;; *) false ;; esac"]) == 0


@BOTH
def test_another_signal_than_sigkill_is_for_the_process_to_handle(traced: Traced) -> None:
    plan = request(
        0, [], Point("launch", "0.1", "mkdir", "/tmp/at", 1), "before", "supervisor", "SIGTERM", quiesced=True
    )
    assert traced.run(["/bin/sh", "-c", "trap 'exit 7' TERM; mkdir /tmp/at; :"], plan) == 7
    assert traced.arena.run(["/bin/sh", "-c", "test -d /tmp/at"]) == 0


@BOTH
def test_nothing_outlives_the_arena_and_no_survivor_is_stopped(traced: Traced) -> None:
    point = Point("launch", "0", "clone", "", 3)
    plan = request(0, [], point, "before", "supervisor", quiesced=True)
    script = "sleep 611 & (while :; do : > /tmp/alive; rm /tmp/alive; done) & sleep 611 & wait"
    assert traced.run(["/bin/sh", "-c", script], plan) == -9
    alive = ["/bin/sh", "-c", "while [ ! -e /tmp/alive ]; do :; done; while [ -e /tmp/alive ]; do :; done"]
    assert traced.arena.run(alive, timeout=PATIENCE) == 0, "a survivor is stopped"
    pids = traced.arena.pids()
    assert pids
    traced.arena.down()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_payload_runs_without_stops_unless_the_sandbox_has_a_filter(traced: Traced) -> None:
    payload = ["/bin/sh", "-c", ": > /tmp/written; exec true"]
    assert traced.run(["/bin/sh", "-c", '"$@"; exit 0', "sh", *payload], recording(0, payload)) == 0
    assert any("payload" in line for line in traced.lines)
    assert not any("/tmp/written" in point for point in traced.points)


def test_a_command_that_does_not_exist_is_reported_as_without_a_tracer(traced: Traced) -> None:
    with pytest.raises(TargetError, match="start /no/such: no such file"):
        traced.run(["/no/such"])
    assert traced.run(["/bin/true"]) == 0


def test_a_request_that_is_not_one_is_refused_and_the_arena_stays(traced: Traced) -> None:
    for wrong in ({"root": 0}, {"root": 0, "payload": [], "cpu": 99999, "fault": None}):
        with pytest.raises((TargetError, ArenaError)):
            traced.run(["/bin/true"], wrong)
    assert traced.run(["/bin/true"]) == 0


def test_an_explained_run_tells_each_call_with_its_object_and_what_it_returned(traced: Traced) -> None:
    script = "cd /tmp; mkdir box; mkdir box; ln -s box link; mkdir link/in; mv box/in box/out; rmdir box/out; exit 3"
    assert traced.run(["/bin/sh", "-c", f"({script})"], {**recording(0, []), "explain": True}) == 3
    events = calls_of({"launch": traced.lines})
    calls = [one for one in events if isinstance(one, Call) and one.point.operation in ("mkdir", "rename", "rmdir")]
    assert [(one.text, one.result) for one in calls] == [
        ('mkdir("/tmp/box", 0777)', "0"),
        ('mkdir("/tmp/box", 0777)', "EEXIST"),
        ('mkdir("/tmp/link/in", 0777)', "0"),
        ('rename("/tmp/box/in", "/tmp/box/out", RENAME_NOREPLACE)', "0"),
        ('rmdir("/tmp/box/out")', "0"),
    ]
    made, moved, gone = calls[2].now, calls[3], calls[4]
    assert made is not None and made.path == "/tmp/box/in" and calls[2].before is None
    assert moved.source is not None and moved.now is not None and gone.before is not None and gone.now is None
    assert made.ino == moved.source.ino == moved.now.ino == gone.before.ino
    assert [one.code for one in events if isinstance(one, Ended)][-1:] == [3]


def test_a_command_waits_where_its_owner_wants_it_to_and_goes_on_when_it_is_let(tmp_path: Path) -> None:
    payload = ["/bin/sh", "-c", "echo payload"]
    held: list[str] = []
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with Arena() as arena, (tmp_path / "out").open("w+b") as out:
        log = os.memfd_create("log")
        asked = {**recording(0, payload), "hold": ["start", "payload", "end"]}
        argv = ["/bin/sh", "-c", 'echo start; "$@"; echo end', "sh", *payload]
        with arena.popen(argv, trace=Trace(asked, log, reader), stdout=out.fileno()) as process:
            for instant, printed in (("start", ""), ("payload", "start\n"), ("end", "start\npayload\n")):
                wait_until(
                    f"held at {instant}", lambda at=instant: f'"held":"{at}"'.encode() in os.pread(log, 1 << 20, 0)
                )
                lines = [json.loads(line) for line in os.pread(log, 1 << 20, 0).splitlines()]
                line = next(line for line in lines if line.get("held") == instant)
                held.append(line["held"])
                assert os.pread(out.fileno(), 99, 0).decode() == printed, instant
                # It stopped there, and nothing else did.
                assert " t (tracing stop)" in Path(f"/proc/{line['pid']}/status").read_text().replace("\t", " ")
                os.write(writer, b"\0")
            assert process.wait(PATIENCE) == 0
        assert os.pread(out.fileno(), 99, 0) == b"start\npayload\nend\n"
    assert held == ["start", "payload", "end"]
    for fd in (reader, writer, log):
        os.close(fd)


def test_a_command_goes_on_if_nobody_can_let_it() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with Arena() as arena:
        log = os.memfd_create("log")
        asked = {**recording(0, ["/bin/true"]), "hold": ["start", "end"]}
        with arena.popen(["/bin/true"], trace=Trace(asked, log, reader)) as process:
            os.close(writer)
            assert process.wait(PATIENCE) == 0
        os.close(log)
    os.close(reader)


def test_a_child_that_ends_by_its_parents_end_makes_its_last_calls_first(traced: Traced) -> None:
    program = """
import ctypes, os, time
ready, tell = os.pipe()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    os.write(tell, b"x")
    # It runs on while its parent ends.
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    os.mkdir("/tmp/last")
    os._exit(0)
os.read(ready, 1)
os._exit(3)
"""
    for _ in range(5):
        assert traced.run([sys.executable, "-SIc", program]) == 3
        assert traced.points[-3:] == ["0/exit#1", "0.1/mkdir(/tmp/last)#1", "0.1/exit#1"]
        assert traced.arena.run(["/bin/rmdir", "/tmp/last"]) == 0


def test_a_parent_does_not_wait_for_a_child_that_blocks_or_that_its_end_does_not_end(traced: Traced) -> None:
    program = """
import ctypes, os, signal, sys, time
ready, tell = os.pipe()
if os.fork() == 0:
    if sys.argv[1] == "blocks":
        ctypes.CDLL(None).prctl(1, 9)
        os.write(tell, b"x")
        signal.pause()
    os.write(tell, b"x")
    end = time.process_time() + 5
    while time.process_time() < end:
        pass
os.read(ready, 1)
os._exit(3)
"""
    for how in ("blocks", "goes on"):
        assert traced.run([sys.executable, "-SIc", program, how], {**recording(0, []), "explain": True}) == 3
        (exits,) = (one["ms"] for one in traced.lines if (one.get("role"), one.get("operation")) == ("0", "exit"))
        (ended,) = (one["ms"] for one in traced.lines if one.get("ended") == "0")
        # The tracer's patience is 4 s.
        assert ended - exits < 2000
