"""What made something and what removes it is told by identity alone."""

import msgspec

from injectors.crash import Point
from leakcheck.trials.calls import Call, Ended, Event, Fired, Made, Object, calls_of
from leakcheck.trials.lives import lives
from leakcheck.trials.remnant import Remnant


def call(operation: str, place: str, *, before: int = 0, now: int = 0, value: int = 0) -> Call:
    def at(ino: int) -> Object | None:
        return Object(f"/run/{place}", "0:1", ino, 1) if ino else None

    text = f'{operation}("/run/{place}", O_CREAT)'
    point = Point("launch", "0", operation, place, 1)
    return Call(point=point, phase="setup", text=text, value=value, looked=True, before=at(before), now=at(now))


def left(place: str, ino: int) -> Remnant:
    evidence = {"resource": {"path": f"/run/{place}", "ino": ino}}
    return Remnant("file", "orphaned", place, evidence=msgspec.Raw(msgspec.json.encode(evidence)))


def told(place: str, ino: int, killed: list[Event], honest: list[Event]) -> tuple[str, str, str]:
    found = lives([left(place, ino)], killed, honest, {})[0]
    return found.created, found.released, found.how


MADE = call("mkdir", "box", now=7)
GONE = call("rmdir", "box", before=7)


def test_the_same_inode_at_the_same_path_has_its_calls_and_nothing_like_it_has() -> None:
    honest: list[Event] = [MADE, GONE]
    known = ("launch:0/mkdir(box)#1", "launch:0/rmdir(box)#1", "the fault came between them")
    assert told("box", 7, [MADE, Fired()], honest) == known
    assert told("box", 8, [MADE, Fired()], honest) == ("", "", "not known")
    assert told("boxes", 7, [MADE, Fired()], honest) == ("", "", "not known")


def test_a_mount_that_was_made_by_a_descriptor_of_the_directory_below_it_is_known_by_its_place() -> None:
    def mount(flags: str) -> Call:
        place = Object("/run/box", "0:1", 7, 1)
        made = call("mount", "/proc/self/fd/N", now=7, before=7)
        return msgspec.structs.replace(made, text=f'mount("/proc/self/fd/3", {flags})', before=place, now=place)

    evidence = {"resource": {"target": "/run/box", "id": {"unique": 99}}}
    remnant = Remnant("mount", "growing", "mount", evidence=msgspec.Raw(msgspec.json.encode(evidence)))
    gone = call("umount", "box", before=8)

    def told_of(*calls: Call) -> tuple[str, str]:
        (one,) = lives([remnant], [*calls, Fired()], [*calls, gone], {})
        return one.created, one.released

    assert told_of(mount("MS_NOSUID")) == ("launch:0/mount(/proc/self/fd/N)#1", "launch:0/umount(box)#1")
    assert told_of(mount("MS_REC|MS_PRIVATE")) == ("", "")
    assert told_of(mount("MS_NOSUID"), gone) == ("", ""), "it is another mount"


def test_without_results_what_was_not_there_before_a_call_is_known_by_its_name() -> None:
    made, gone = (msgspec.structs.replace(one, value=None) for one in (call("open", "box"), GONE))
    known = ("launch:0/open(box)#1", "launch:0/rmdir(box)#1", "the fault came between them")
    assert told("box", 7, [made, Fired()], [made, gone]) == known
    assert told("boxes", 7, [made, Fired()], [made, gone])[0] == ""
    there = msgspec.structs.replace(made, before=GONE.before)
    assert told("box", 7, [there, Fired()], [there, gone])[0] == ""
    assert told("box", 7, [made, gone, Fired()], [made, gone]) == known, "it is there, so its removal failed"


def test_what_existed_before_a_call_was_not_made_by_it() -> None:
    opened = call("open", "box", before=7, now=7, value=3)
    assert told("box", 7, [opened, Fired()], []) == ("", "", "not known")
    failed = call("mkdir", "box", before=7, value=-17)
    assert told("box", 7, [failed, Fired()], []) == ("", "", "not known")
    unseen = msgspec.structs.replace(call("open", "box", now=7, value=3), looked=False)
    assert told("box", 7, [unseen, Fired()], []) == ("", "", "not known")


def test_a_directory_that_has_another_name_in_another_root_is_the_same_one() -> None:
    root = msgspec.structs.replace(call("open", "", now=7, value=3), now=Object("/", "0:1", 7, 2), before=MADE.now)
    assert told("box", 7, [MADE, root, Fired()], [MADE, GONE])[0] == "launch:0/mkdir(box)#1"


def test_an_inode_that_is_given_again_belongs_to_the_later_call() -> None:
    again = call("mknod", "box", now=7)
    assert told("box", 7, [MADE, GONE, again, Fired()], [again])[0] == "launch:0/mknod(box)#1"
    # What removed the first one is not known.
    assert told("box", 7, [MADE, again, Fired()], [again])[0] == "launch:0/mknod(box)#1"


def test_a_run_that_does_not_make_the_call_says_nothing_of_its_end() -> None:
    assert told("box", 7, [MADE, Fired()], [])[2] == "a run without the fault does not make this call"
    assert told("box", 7, [MADE, Fired()], [MADE])[2] == "no call of a run without the fault releases it"
    assert told("box", 7, [Fired(), MADE], [MADE, GONE])[2] == "made after the fault"


def test_a_release_that_failed_under_the_fault_says_what_it_returned() -> None:
    failed = msgspec.structs.replace(GONE, value=-16)
    assert told("box", 7, [MADE, failed, Fired()], [MADE, GONE])[2] == "under the fault that call returned EBUSY"


def test_commands_of_one_stage_have_numbers_of_their_own() -> None:
    lines = [
        {
            "role": role,
            "operation": "mkdir",
            "class": "",
            "ordinal": 1,
            "phase": "setup",
            "call": "mkdir()",
            "number": 1,
        }
        for role in "01"
    ]
    ends = [{"returned": 1, "value": value} for value in (0, -17)]
    found = calls_of({"prepare": [lines[0], ends[0], lines[1], ends[1]]})
    assert [one.result for one in found if isinstance(one, Call)] == ["0", "EEXIST"]


def test_posix_shared_memory_is_known_by_its_inode_and_a_message_queue_by_its_name() -> None:
    def ipc(**resource: object) -> Remnant:
        return Remnant("ipc", "orphaned", "ipc", evidence=msgspec.Raw(msgspec.json.encode({"resource": resource})))

    queue = msgspec.structs.replace(call("mq_open", "", value=3), text='mq_open("jobs")')
    unlink = msgspec.structs.replace(call("mq_unlink", ""), text='mq_unlink("jobs")')
    memory, other = call("open", "shm", now=7), call("open", "shm", before=8, now=8)
    calls: list[Event] = [queue, memory, other, Fired()]
    left_behind = [
        ipc(**{"class": "mqueue", "name": "/dev/mqueue/jobs", "id": 5}),
        ipc(**{"class": "mqueue", "name": "/dev/mqueue/job", "id": 6}),
        ipc(**{"class": "posix-shm", "name": "/run/shm", "id": 7}),
        ipc(**{"class": "posix-shm", "name": "/run/shm", "id": 8}),
    ]
    honest: list[Event] = [queue, memory, unlink, call("unlink", "shm", before=7)]
    found = [(one.created, one.released) for one in lives(left_behind, calls, honest, {})]
    assert found == [
        ("launch:0/mq_open#1", "launch:0/mq_unlink#1"),
        ("", ""),
        ("launch:0/open(shm)#1", "launch:0/unlink(shm)#1"),
        ("", ""),
    ]


def test_what_a_recovery_removed_at_last_has_its_life() -> None:
    removed = msgspec.structs.replace(GONE, point=msgspec.structs.replace(GONE.point, stage="recover"))
    assert told("box", 7, [MADE, Fired(), removed], [MADE, GONE])[0] == "launch:0/mkdir(box)#1"
    assert told("box", 7, [MADE, GONE, Fired()], [MADE, GONE])[0] == ""


def process(pid: int) -> Remnant:
    return Remnant("process", "growing", "sh", evidence=msgspec.Raw(msgspec.json.encode({"resource": {"pid": pid}})))


def clone(pid: int | None, child: str = "0.1") -> Call:
    return msgspec.structs.replace(call("clone", "", value=0), value=pid, text="clone()", child=child)


def end_of(pid: int, killed: list[Event], honest: list[Event]) -> tuple[str, str, str]:
    (one,) = lives([process(pid)], [*killed, Fired()], honest, {})
    return one.created, one.released, one.how


def test_a_process_that_a_kill_ends_is_released_by_that_call() -> None:
    def killing(text: str, class_: str = "SIGKILL", value: int = 0) -> Call:
        point = Point("launch", "0", "kill", class_, 1)
        return msgspec.structs.replace(call("kill", "", value=value), point=point, text=text)

    ended = Ended("launch", "0.1", -9)
    signal = "without the fault, this process ends with signal 9"
    between = ("launch:0/clone#1", "launch:0/kill(SIGKILL)#1", "the fault came between them")
    # It has another number in each run.
    assert end_of(7, [clone(7)], [clone(8), killing("kill(8, SIGKILL)"), ended]) == between
    assert end_of(7, [clone(7)], [clone(8), killing("kill(-8, SIGKILL)"), ended]) == between
    for other in ("kill(7, SIGKILL)", "kill(88, SIGKILL)", "kill(8, SIGTERM)"):
        assert end_of(7, [clone(7)], [clone(8), killing(other), ended]) == ("launch:0/clone#1", "", signal)
    assert end_of(7, [clone(7)], [clone(8), killing("kill(8, SIGKILL)", value=-3), ended])[1] == "", "it failed"


def test_a_process_of_a_command_that_uses_ptrace_itself_ends_at_its_last_call() -> None:
    exit_ = msgspec.structs.replace(call("exit", ""), point=Point("launch", "0.1", "exit", "", 1), value=None)
    assert end_of(7, [clone(7)], [clone(8), exit_])[:2] == ("launch:0/clone#1", "launch:0.1/exit#1")
    unseen = ("launch:0/clone#1", "", "how it ends without the fault is not seen")
    assert end_of(7, [clone(7)], [clone(8)]) == unseen


def test_a_process_that_no_point_made_has_its_maker() -> None:
    ended = Ended("launch", "0.1", -9)
    killed: list[Event] = [Made("launch", "0.1", "0.1", 7)]
    created, released, how = end_of(7, killed, [Made("launch", "0.1", "0.1", 8), ended])
    assert (created, released) == ("launch:0.1/clone", "")
    assert how == "by a call of its payload that is no point; without the fault, this process ends with signal 9"
    assert end_of(7, killed, [ended])[2].endswith("; a run without the fault does not make it")
    other: list[Event] = [Made("launch", "0.2", "0", 7)]
    assert "by a call of process 0 that is no point" in end_of(7, other, [])[2]
    assert end_of(9, killed, [ended]) == ("", "", "not known")
    # The number was given again.
    assert end_of(7, [*killed, clone(7)], [clone(8), ended])[0] == "launch:0/clone#1"
