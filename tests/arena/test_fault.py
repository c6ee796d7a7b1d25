"""Calls of a traced command fail, come late, or report success without happening, as its plan has it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from waiting import PATIENCE

from injectors import injector_for, parse
from leakcheck.arena import Arena, Trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

HEAD = """
import json, os, signal, sys, time
def told(call, *given):
    try:
        return call(*given)
    except OSError as error:
        return os.strerror(error.errno)
said = []
"""
DIRECTORY = """
for _ in range(3):
    os.path.exists('/tmp/d') or os.mkdir('/tmp/d')
    said.append([told(os.rmdir, '/tmp/d'), os.path.exists('/tmp/d')])
"""
BUSY = "Device or resource busy"

Run = Callable[..., tuple[Any, list[dict[str, Any]]]]


@pytest.fixture
def run() -> Run:
    def run(
        program: str, *lines: str, notified: bool = False, payload: Sequence[str] = ("the", "payload")
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Return what `program` said of itself under the plan of these lines, and what the tracer reported."""
        injector = injector_for(parse("+".join(lines) + ",notified" * notified))
        assert injector.trace is not None
        request = injector.trace("launch", 0, payload)
        log, output = os.memfd_create("log"), os.memfd_create("output")
        text = f"{HEAD}{program}\nprint(json.dumps(said))"
        with Arena() as arena:
            trace = Trace(dict(request or {}), log)
            argv = [sys.executable if sys.executable.startswith("/usr/") else "/usr/bin/python3", "-c", text]
            with arena.popen(argv, trace=trace, stdout=output, stderr=subprocess.DEVNULL) as process:
                assert process.wait(PATIENCE) == 0
            found = [json.loads(line) for line in os.pread(log, 1 << 20, 0).splitlines()]
        return json.loads(os.pread(output, 1 << 20, 0)), found

    return run


BOTH = pytest.mark.parametrize("notified", [False, True])


@BOTH
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("#1:EBUSY", [[BUSY, True], [None, False], [None, False]]),
        ("#2:EBUSY", [[None, False], [BUSY, True], [None, False]]),
        ("#2+:EBUSY", [[None, False], [BUSY, True], [BUSY, True]]),
        ("#*:EBUSY", [[BUSY, True], [BUSY, True], [BUSY, True]]),
        ("#1:lie", [[None, True], [None, False], [None, False]]),
        ("#*:lie", [[None, True], [None, True], [None, True]]),
    ],
)
def test_a_call_fails_or_lies_once_or_from_then_on(run: Run, fault: str, said: Any, notified: bool) -> None:
    found, lines = run(DIRECTORY, f"launch:0/rmdir(/tmp/d){fault}", notified=notified)
    assert found == said
    assert [line for line in lines if "injected" in line] == [{"injected": "setup", "fault": 0}]


def test_an_error_after_the_call_replaces_the_result_of_a_call_that_happens(run: Run) -> None:
    found, _ = run(DIRECTORY, "launch:0/rmdir(/tmp/d)#1:after:EBUSY")
    assert found[0] == [BUSY, False]
    close = "fd = os.open('/tmp/f', 65); said += [told(os.close, fd), told(os.fstat, fd), told(os.close, fd)]"
    found, _ = run(close, "launch:0/close(/tmp/f)#1:after:EIO")
    assert found == ["Input/output error", *["Bad file descriptor"] * 2]


@pytest.mark.parametrize(("how", "stays"), [("lie", True), ("EIO", True), ("after:EIO", False)])
def test_a_descriptor_whose_close_did_not_happen_is_still_open(run: Run, how: str, stays: bool) -> None:
    close = "fd = os.open('/tmp/f', 65); told(os.close, fd); said += [os.path.exists(f'/proc/self/fd/{fd}')]"
    assert run(close, f"launch:0/close(/tmp/f)#1:{how}")[0] == [stays]


def test_waits_fail_and_a_wait_that_lies_reaps_nobody(run: Run) -> None:
    program = """
pid = os.fork() or os._exit(3)
said += [told(os.waitpid, pid, 0), told(os.waitpid, pid, 0)]
said[0] = said[0] if isinstance(said[0], str) else [said[0][0] == pid, said[0][1]]
said[1] = said[1] if isinstance(said[1], str) else os.waitstatus_to_exitcode(said[1][1])
"""
    assert run(program, "launch:0/wait#1:ECHILD")[0] == ["No child processes", 3]
    assert run(program, "launch:0/wait#1:lie")[0] == [[True, 0], 3]
    id_of = program.replace("told(os.waitpid, pid, 0), ", "told(lambda: [*os.waitid(os.P_PID, pid, 4)][::4]), ")
    assert run(id_of, "launch:0/wait#1:lie")[0] == [[True, 1], 3]


def test_a_wait_that_fails_after_it_has_reaped_tells_nothing_of_the_child(run: Run) -> None:
    program = """
import ctypes
libc, status = ctypes.CDLL(None, use_errno=True), ctypes.c_int(77)
pid = os.fork() or os._exit(3)
said += [libc.waitpid(pid, ctypes.byref(status), 0), os.strerror(ctypes.get_errno()), status.value]
said += [told(os.waitpid, pid, 0)]
"""
    assert run(program, "launch:0/wait#1:after:ECHILD")[0] == [-1, "No child processes", 77, "No child processes"]
    info = program.replace("c_int(77)", "create_string_buffer(b'x' * 128)").replace(", 0), os", ", 4, None), os")
    info = info.replace("libc.waitpid(pid", "libc.waitid(1, pid").replace("status.value", "status.raw[:32].decode()")
    assert run(info, "launch:0/wait#1:after:ECHILD")[0] == [-1, "No child processes", "x" * 32, "No child processes"]


def test_a_write_that_lies_has_written_everything(run: Run) -> None:
    program = "fd = os.open('/tmp/f', 65); said += [os.write(fd, b'abc'), os.writev(fd, [b'de', b'f'])]"
    program += "; said.append(os.fstat(fd).st_size)"
    assert run(program, "launch:0/write(/tmp/f)#*:lie")[0] == [3, 3, 0]


@BOTH
def test_others_go_on_while_a_call_is_delayed(run: Run, notified: bool) -> None:
    program = """
os.mkdir('/tmp/d')
r, w = os.pipe()
if os.fork() == 0:
    os.rmdir('/tmp/d')
    os.write(w, b'x')
    os._exit(0)
began = time.monotonic()
os.mkdir('/tmp/e')
said += [os.path.exists('/tmp/d') and time.monotonic() - began < 0.4, os.read(r, 1).decode()]
said += [os.path.exists('/tmp/d'), time.monotonic() - began >= 0.3]
"""
    found, _ = run(program, "launch:0.1/rmdir(/tmp/d)#1:delay=400ms", notified=notified)
    assert found == [True, "x", False, True]


def test_two_faults_and_a_kill_are_in_one_plan(run: Run) -> None:
    program = f"{DIRECTORY}\nif os.fork() == 0:\n    os.mkdir('/tmp/x')\n    os._exit(0)\n"
    program += "said.append(os.waitpid(-1, 0)[1])"
    plan = ["0/rmdir(/tmp/d)#1:EBUSY", "0/rmdir(/tmp/d)#3:lie", "0.1/mkdir(/tmp/x)#1:before:SIGKILL,helper"]
    found, lines = run(program, *(f"launch:{one}" for one in plan))
    assert found == [[BUSY, True], [None, False], [None, True], 9]
    assert [line.get("fault", "kill") for line in lines if "ended" not in line] == [0, 1, "kill"]


def test_no_call_of_the_payload_fails_even_where_all_calls_are_stopped_at(run: Run) -> None:
    payload = ["/bin/sh", "-c", "exec 3>/tmp/q; exec 3>&- && exec rmdir /tmp/p"]
    program = f"""
os.mkdir('/tmp/p')
pid = os.fork() or os.execv('/bin/sh', {payload})
said += [os.waitpid(pid, 0)[1], os.path.exists('/tmp/p')]
"""
    plan = ["launch:0.1/rmdir(/tmp/p)#*:EBUSY", "launch:0.1/close(/tmp/q)#*:after:EIO"]
    assert run(program, *plan, payload=payload) == ([0, False], [{"payload": "0.1"}])
    told, lines = run(program, *plan)
    assert told == [256, True]
    assert {line["fault"] for line in lines if "injected" in line} == {0, 1}


def test_a_lasting_fault_ends_with_the_command() -> None:
    program = """
os.mkdir('/tmp/d')
r, w = os.pipe()
if os.fork() == 0:
    said.append(told(os.rmdir, '/tmp/d'))
    os.write(w, b'x')
    while os.getppid() != 1:
        time.sleep(0.001)
    os.rmdir('/tmp/d')
    os._exit(0)
os.read(r, 1)
"""
    with Arena() as arena:
        injector = injector_for(parse("launch:0.1/rmdir(/tmp/d)#*:EBUSY"))
        assert injector.trace is not None
        log = os.memfd_create("log")
        trace = Trace(dict(injector.trace("launch", 0, []) or {}), log)
        with arena.popen(["/usr/bin/python3", "-c", HEAD + program], trace=trace) as process:
            assert process.wait(PATIENCE) == 0
        gone = ["/bin/sh", "-c", "while [ -e /tmp/d ]; do sleep 0.01; done"]
        assert arena.run(gone, timeout=PATIENCE) == 0
        assert b"injected" in os.pread(log, 1 << 20, 0)
