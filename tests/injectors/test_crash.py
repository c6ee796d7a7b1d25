"""A crash plan prints a line that parses back; of a wrong one, the error names the part that is wrong."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors import injector_for, parse
from injectors.crash import ENDINGS, SENT, STAGES, VICTIMS, Crash, Point, When, crash_plan
from leakcheck._native import OPERATIONS
from leakcheck.errors import UsageError

roles = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,3}", fullmatch=True)
classes = st.from_regex(r"[a-zA-Z0-9_.+~/-]{0,40}", fullmatch=True)
points = st.builds(Point, st.sampled_from(STAGES), roles, st.sampled_from(OPERATIONS), classes, st.integers(1, 10_000))


@given(
    points,
    st.sampled_from(get_args(When)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(VICTIMS),
    st.sampled_from(("normal", *ENDINGS)),
    st.sampled_from(SENT),
)
def test_a_plan_prints_a_line_that_parses_back(point, when, quiesced, notified, victim, ending, sent) -> None:  # type: ignore[no-untyped-def]
    if point.operation == "exit" or notified:
        when = "before"
    if victim == "freeze":
        sent = "SIGKILL"
    plan = crash_plan(point, when, quiesced=quiesced, notified=notified, victim=victim, ending=ending, sent=sent)
    assert parse(str(plan)) == plan
    injector = Crash.of(plan)
    assert (injector.point, injector.when, injector.victim, injector.sent) == (point, when, victim, sent)
    assert (injector.quiesced, injector.notified) == (quiesced, notified)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("launch:0/mkdir(/a)#1:before:SIGUSR1", "'SIGUSR1' is no signal of a plan"),
        ("launch:0/mkdir(/a)#1:before", "'nothing' is no signal of a plan"),
        (
            "launch:0/mkdir(/a)#1:before:SIGTERM,freeze",
            "'freeze': stopped processes act on SIGKILL alone, not on SIGTERM",
        ),
        ("launch:0/mkdir(/a)#1:during:SIGKILL", "'during' is neither before nor after"),
        ("launch:0/mkdir(/a)#1", "'nothing' is neither before nor after"),
        ("launch:0/mkdri(/a)#1:before:SIGKILL", "'mkdri' is no operation"),
        ("launch:0/mkdir(/a)#0:before:SIGKILL", "points are counted from 1"),
        ("launch:a/mkdir(/a)#1:before:SIGKILL", "'a/mkdir(/a)#1' is no point"),
        ("launch:0/exit#1:after:SIGKILL", "has no after"),
        ("launch:0/mkdir(/a)#1:after:SIGKILL,notified", "'notified' has no after"),
        ("launch", "'' is no point"),
        ("launch:0/mkdir(/a)#1:before:SIGKILL,helpr", "'helpr' is no flag"),
        ("launch:0/mkdir(/a)#1:before:SIGKILL,helper,quiesced", "'quiesced' is no flag at this place"),
    ],
)
def test_the_error_names_the_wrong_part_and_the_form(line: str, wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(line)
    assert wrong in str(error.value)
    assert str(error.value).endswith(
        "give STAGE:ROLE/OPERATION[(CLASS)]#N:before|after:SIGNAL[,quiesced][,notified][,WHO][,ENDING]"
    )


def test_a_plan_of_the_recovery_crashes_the_run_first() -> None:
    injector = injector_for(parse("recover:0/rmdir(/x)#1:before:SIGKILL"))
    assert injector.trace is not None
    launch, recover = injector.trace("launch", 0, ["a"]), injector.trace("recover", 0, [])
    assert launch and launch["fault"]["operation"] == "payload"
    assert recover and recover["fault"]["operation"] == "rmdir"
    assert injector.trace("prepare", 0, []) is None
