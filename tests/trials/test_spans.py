"""How long what a run makes exists is decided by identities, on calls that were never made."""

from typing import Any

from injectors.crash import Point
from leakcheck.trials.calls import Call, Ended, Event, Object
from leakcheck.trials.spans import MOST, spans_of


def call(operation: str, number: int = 1, *, role: str = "0", phase: str = "setup", **more: Any) -> Call:
    fields: dict[str, Any] = {"text": operation, "value": 0, "looked": True}
    return Call(point=Point("launch", role, operation, "", number), phase=phase, **(fields | more))


def thing(ino: int, path: str = "/x", mount: int = 1) -> Object:
    return Object(path, "0:1", ino, mount)


def shown(events: list[Event]) -> list[tuple[str, str, int, int | None, str]]:
    return [(one.kind, one.label, one.begin, one.end, one.released) for one in spans_of(events).spans]


def test_a_directory_exists_until_the_call_that_removes_it() -> None:
    events: list[Event] = [
        call("mkdir", now=thing(7, "/a")),
        call("mkdir", 2, now=thing(8, "/b")),
        call("rmdir", before=thing(7, "/a")),
    ]
    assert shown(events) == [
        ("directory", "/a", 0, 2, "launch:0/rmdir#1"),
        ("directory", "/b", 1, None, ""),
    ]


def test_a_call_that_failed_made_and_removed_nothing() -> None:
    events: list[Event] = [
        call("mkdir", now=thing(7)),
        call("mkdir", 2, now=thing(8), value=-17),
        call("rmdir", before=thing(7), value=-16),
    ]
    assert shown(events) == [("directory", "/x", 0, None, "")]


def test_an_inode_that_comes_again_is_something_new() -> None:
    events: list[Event] = [
        call("mkdir", now=thing(7, "/a")),
        call("rmdir", before=thing(7, "/a")),
        call("mkdir", 2, now=thing(7, "/b")),
    ]
    assert [(label, begin, end) for _, label, begin, end, _ in shown(events)] == [("/a", 0, 1), ("/b", 2, None)]


def test_a_process_its_namespaces_and_its_locks_end_with_it() -> None:
    clone = Call(
        point=Point("launch", "0", "clone", "pid", 1),
        phase="setup",
        text="clone",
        value=12,
        child="0.1",
        namespaces={"pid": 99, "net": 5},
    )
    lock = call("lock", role="0.1", before=thing(3, "/lock"), text="flock(3, LOCK_EX)")
    events: list[Event] = [clone, lock, call("mkdir", now=thing(7)), Ended("launch", "0.1", 0), call("mkdir", 2)]
    assert shown(events)[:3] == [
        ("process", "0.1", 0, 2, ""),
        ("namespace", "pid", 0, 2, ""),
        ("lock", "/lock", 1, 2, ""),
    ]


def test_phases_begin_where_they_change() -> None:
    events: list[Event] = [call("mkdir"), call("mkdir", 2), call("rmdir", phase="cleanup")]
    assert spans_of(events).phases == [("setup", 0), ("cleanup", 2)]


def test_of_very_many_things_those_stay_that_exist_longest() -> None:
    events: list[Event] = []
    for number in range(2 * MOST):
        events.append(call("mkdir", number, now=thing(number, f"/short/{number}")))
        events.append(call("rmdir", number, before=thing(number)))
    events.insert(0, call("mkdir", 10_000, now=thing(99_999, "/long")))
    found = spans_of(events)
    assert (len(found.spans), found.left_out) == (MOST, MOST + 1)
    assert found.spans[0].label == "/long"


def test_no_call_makes_nothing() -> None:
    assert spans_of([]).spans == []
