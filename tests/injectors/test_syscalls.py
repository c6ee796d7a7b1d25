"""A plan of faults prints a line that parses back; of a wrong one, the error names the part that is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors import injector_for, parse
from injectors.crash import STAGES, Point, crash_plan
from injectors.errnos import ALLOWED, USUAL
from injectors.syscalls import MODES, NO_LIE, WATCHED, Fault, Syscalls, fault_plan
from leakcheck._native import OPERATIONS
from leakcheck.errors import UsageError

roles = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,3}", fullmatch=True)
places = st.from_regex(r"[a-zA-Z0-9_.+~/-]{0,40}", fullmatch=True)


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    operation = draw(st.sampled_from(sorted(ALLOWED.keys() - NO_LIE)))
    point = Point(draw(st.sampled_from(STAGES)), draw(roles), operation, draw(places), draw(st.integers(1, 10_000)))
    mode = draw(st.sampled_from(MODES))
    error = draw(st.sampled_from(sorted(ALLOWED[operation]))) if mode in ("fail", "after") else ""
    return Fault(point, mode, draw(st.booleans()), error, draw(st.integers(1, 10_000)) if mode == "delay" else 0)


kills = st.builds(
    lambda point, quiesced, victim: crash_plan(point, "before", quiesced=quiesced, victim=victim, ending="timeout"),
    st.builds(Point, st.sampled_from(STAGES), roles, st.sampled_from(OPERATIONS), places, st.integers(1, 10_000)),
    st.booleans(),
    st.sampled_from(("supervisor", "helper", "freeze")),
)


@given(
    st.lists(faults(), min_size=1, max_size=3, unique_by=lambda one: (one.point.stage, one.point.role)),
    st.none() | kills,
)
def test_a_plan_prints_a_line_that_parses_back(some, kill) -> None:  # type: ignore[no-untyped-def]
    plan = fault_plan(some, kill)
    assert parse(str(plan)) == plan
    injector = Syscalls.of(plan)
    assert injector.faults == tuple(some)
    assert (injector.kill and (injector.kill.point, injector.kill.quiesced)) == (
        kill and (Syscalls.of(kill).kill.point, "quiesced" in kill.flags)  # type: ignore[union-attr]
    )
    assert sum(injector.stages.values()) == len(some) + (kill is not None)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("launch:0/rmdir(/a)#1:EBUSZ", "'EBUSZ' is no fault"),
        ("launch:0/rmdir(/a)#1:ECHILD", "no ECHILD in the manual page of rmdir; it has EACCES, EBADF, EBUSY"),
        ("launch:0/rmdir(/a)#1+:ECHILD", "--any-errno allows it"),
        ("launch:0/rmdir(/a)#1:EBUSY+launch:0/rmdir(/a)#1:EPERM", "'0/rmdir(/a)#1:EPERM' never happens"),
        ("launch:0/rmdir(/a)#*:EBUSY+launch:0/rmdir(/a)#2:EPERM", "'0/rmdir(/a)#*:EBUSY' is at the same call"),
        ("launch:0/rmdir(/a)#2+:EBUSY+launch:0/rmdir(/a)#2+:EPERM", "never happens"),
        ("launch:0/rmdir(/a)#0:EBUSY", "points are counted from 1"),
        (f"launch:0/rmdir(/a)#{'9' * 5000}:EBUSY", "is no point"),
        (f"launch:0/rmdir(/a)#{'9' * 5000}:before:SIGKILL", "is no point"),
        ("launch:0/rmdir(/a)#4294967296+:EBUSY", "'0/rmdir(/a)#4294967296+' is no point"),
        ("launch:0/rmdir(/a)#٣:EBUSY", "is no point"),
        ("launch:0/rmdri(/a)#1:EBUSY", "'rmdri' is no operation"),
        ("launch:0/rmdir(/a)#+:EBUSY", "'0/rmdir(/a)#+' is no point"),
        ("launch:0/rmdir(/a)#*", "'nothing' is no fault"),
        ("launch:0/rmdir(/a)#*:before:SIGKILL", "'before:SIGKILL' is no fault"),
        ("launch:0/rmdir(/a)#1:delay=0ms", "'delay=0ms': give 1 to 10000 ms"),
        ("launch:0/rmdir(/a)#1:delay=1s", "'delay=1s' is no fault"),
        ("launch:0/clone#1:lie", "nothing can stand for what clone returns"),
        ("launch:0/clone#1:after:EAGAIN", "clone has no result to replace"),
        ("launch:0/exit#1:EAGAIN", "exit has no result to replace"),
        ("launch:0/rmdir(/a)#1:EBUSY,quiesced", "'quiesced' is no flag of a plan without a kill"),
        ("launch:0/close(/a)#1:EIO,notified", "is stopped before its crash points only"),
        ("launch:0/rmdir(/a)#1:after:EBUSY,notified", "is stopped before its crash points only"),
        ("launch:0/rmdir(/a)#1:EBUSY+lunch:0/rmdir(/a)#1:EBUSY", "'lunch' is no stage"),
        ("launch:0/rmdir(/a)#1:EBUSY+lunch:0/rmdir(/a)#1:before:SIGKILL", "'lunch' is no stage"),
        ("launch:0/rmdir(/a)#1:EBUSY+launch:0/rmdir(/a)#1:during:SIGKILL", "'during' is neither before nor after"),
        (
            "launch:0/rmdir(/a)#1:before:SIGKILL+launch:0/rmdir(/a)#2:before:SIGKILL",
            "'0/rmdir(/a)#2:before:SIGKILL' is a second kill",
        ),
    ],
)
def test_the_error_names_the_wrong_part(line: str, wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(line)
    assert wrong in str(error.value)


def test_of_two_faults_at_one_call_the_first_happens_and_the_second_is_at_the_other_calls() -> None:
    plan = parse("launch:0/rmdir(/a)#1:EPERM+launch:0/rmdir(/a)#*:EBUSY+launch:0/rmdir(/b)#1:EBUSY")
    assert [one.error for one in Syscalls.of(plan).faults] == ["EPERM", "EBUSY", "EBUSY"]


def test_any_error_is_allowed_if_the_plan_says_so() -> None:
    assert parse("launch:0/rmdir(/a)#1:ECHILD,timeout,anyerrno").flags == ("timeout", "anyerrno")


def test_a_plan_of_the_recovery_crashes_the_run_unless_the_run_has_a_fault_of_its_own() -> None:
    recovery = injector_for(parse("recover:0/rmdir(/x)#1:EBUSY"))
    both = injector_for(parse("launch:0/umount(/a+b:)#1:EBUSY+recover:0/rmdir(/x)#1:before:SIGKILL".replace(":)", ")")))
    assert recovery.trace is not None
    assert both.trace is not None
    crash = recovery.trace("launch", 0, [])
    assert crash and crash["fault"]["operation"] == "payload"
    launch, recover = both.trace("launch", 0, []), both.trace("recover", 0, [])
    assert launch and launch["fault"] is None and [one["class"] for one in launch["faults"]] == ["/a+b"]
    assert recover and recover["fault"]["operation"] == "rmdir" and not recover["faults"]
    assert both.stages == {"launch": 1, "recover": 1}


def test_the_table_of_errors_is_of_operations_and_errors_that_exist() -> None:
    assert {*ALLOWED, *WATCHED} <= {*OPERATIONS}
    for operation, errors in USUAL.items():
        assert {*errors} <= ALLOWED[operation]
    for operation, errors in ALLOWED.items():
        for error in errors:
            parse(f"launch:0/{operation}#1:{error}") if operation != "exit" else None
