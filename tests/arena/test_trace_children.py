"""An explained run tells which call made each process, and who made those that no point makes."""

import os
import re
import sys
import tempfile
from collections.abc import Sequence

import pytest

from injectors.crash import recording
from leakcheck.arena import Arena, Trace
from leakcheck.trials.calls import Call, Event, Made, calls_of
from leakcheck.trials.tracing import Tracing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


def explained(argv: Sequence[str], payload: Sequence[str] = (), *, notified: bool = False) -> list[Event]:
    with tempfile.TemporaryFile() as log, Arena() as arena:
        asked = {**recording(0, payload), "explain": True, "notified": notified}
        assert arena.popen(argv, trace=Trace(asked, log.fileno())).wait(30) == 0
        return calls_of({"launch": Tracing(lambda *_: None, 0).lines(log.fileno())})


@pytest.mark.parametrize("notified", [False, True])
def test_the_call_that_made_a_process_has_its_number_and_its_role(notified: bool) -> None:
    script = "sleep 0 & first=$!; sleep 0 & mkdir /tmp/they-are-$first-$!; wait"
    events = explained(["/bin/sh", "-c", script], notified=notified)
    calls = [one for one in events if isinstance(one, Call)]
    (numbers,) = (found.groups() for one in calls if (found := re.match(r"mkdir.*they-are-(\d+)-(\d+)", one.text)))
    made = [(one.name, one.child, one.value) for one in calls if one.child][:2]
    assert made == [
        ("launch:0/clone#1", "0.1", int(numbers[0])),
        ("launch:0/clone#2", "0.2", int(numbers[1])),
    ]


def test_of_a_notified_run_a_child_that_ended_and_is_not_waited_for_is_not_taken_for_the_next_one() -> None:
    # Nobody waits for the first two, which are zombies when the third one makes its first call.
    script = """
import os
for number in range(3):
    if not (child := os.fork()):
        if number == 2:
            os.mkdir("/tmp/third")
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
"""
    calls = [one for one in explained([sys.executable, "-c", script], notified=True) if isinstance(one, Call)]
    assert [one.name for one in calls if one.text.startswith("mkdir")] == ["launch:0.3/mkdir(/tmp/third)#1"]


def test_what_a_payload_makes_is_told_with_its_maker() -> None:
    payload = ["/bin/sh", "-c", "sleep 0 & wait"]
    events = explained(["/bin/sh", "-c", '"$@"; exit $?', "sh", *payload], payload)
    made = [one for one in events if isinstance(one, Made)]
    assert [(one.stage, one.role, one.by) for one in made] == [("launch", "0.1", "0.1")]
    assert made[0].pid > 1
    # It is no call, and the numbers of calls stay theirs.
    assert all(one.value is not None for one in events if isinstance(one, Call) and one.point.operation == "clone")


POLLS = """
import os
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.read(reader, 1)
    os._exit(0)
{poll}
os.write(writer, b"x")
{wait}
try:
    {poll}
except ChildProcessError:
    pass
"""
BY_PID = ("os.waitpid(child, os.WNOHANG)", "os.waitpid(child, 0)")
BY_ID = ("os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)", "os.waitid(os.P_ALL, 0, os.WEXITED)")


@pytest.mark.parametrize(("poll", "wait"), [BY_PID, BY_ID], ids=["wait4", "waitid"])
def test_a_wait_that_finds_no_process_is_idle(poll: str, wait: str) -> None:
    script = POLLS.format(poll=poll, wait=wait)
    with tempfile.TemporaryFile() as log, Arena() as arena:
        asked = recording(0, [], watched=True)
        assert arena.popen([sys.executable, "-SIc", script], trace=Trace(asked, log.fileno())).wait(30) == 0
        lines = Tracing(lambda *_: None, 0).lines(log.fileno())
    waits = [line["number"] for line in lines if line.get("operation") == "wait"]
    assert [number for number in waits if {"idle": number} in lines] == [waits[0], waits[2]]
    assert len(waits) == 3
