"""A traced or notified run is the same run: every target reports the same statuses, and leaves the same."""

import itertools
import os

import pytest

from injectors import Plan
from leakcheck.conformance import tried
from leakcheck.errors import LateError, TargetError
from leakcheck.targets import Target, builtin
from leakcheck.trials import open_host
from leakcheck.trials.case import case_of
from leakcheck.trials.crash_points import record
from leakcheck.trials.runner import never
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import fixed, place_of
from leakcheck.trials.trace_requests import notifying, recording_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

ENDINGS = [Plan("normal"), Plan("timeout"), Plan("crash", "signal"), Plan("crash", "exit")]
QUICK = {"bwrap", "refbox", "runc", "firejail", "proot"}
TARGETS = pytest.mark.parametrize(
    "target",
    [pytest.param(one, marks=[] if one.name in QUICK else [pytest.mark.slow]) for one in builtin()],
    ids=lambda target: target.name,
)


def notified(target: Target) -> set[str]:
    """Return which of its stages are notified; skip the test if it cannot run here, or not be traced."""
    state = tried(target)
    if state.state != "ready":
        pytest.skip(f"{state.state}: {state.reason}; {state.hint}")
    try:
        recording = record(target, case_of(ENDINGS[0]).submission, 0, recovery=False, stop=never)
    except TargetError as error:
        if "cannot be traced" not in str(error):
            raise
        pytest.skip(str(error))
    return {one.point.stage for one in recording.points if one.notified}


@TARGETS
def test_a_traced_run_has_the_status_and_leaves_what_an_untraced_one_does(target: Target) -> None:
    stages = notified(target)
    for plan, every in itertools.product(ENDINGS, (False, True)):
        request = notifying(recording_of(every), stages)
        submission = case_of(plan, target.adapter.shortest_wall).submission
        left = []
        for traced in (False, True):
            with open_host(target, 0.25, live=False) as host:
                session = Session(target, host)
                assert session.again() == ""
                session.renew()
                argv = session.prepare(submission)
                host.begin()
                with session.tracing(request if traced else lambda *_: None):
                    try:
                        wrong = session.run(argv, submission)
                    except LateError as error:
                        wrong = str(error)
                left.append((wrong, {(leak.kind, fixed(place_of(leak))) for leak in host.observe().leaks}))
        assert left[0] == left[1], (plan, every)
