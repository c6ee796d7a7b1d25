"""Compiled submissions get their status from every target that can be run here: each one in an arena."""

import os
from collections.abc import Sequence

import pytest

from leakcheck.conformance import tried
from leakcheck.submissions import BEHAVIOURS, LANGUAGES, Spec, build, spec
from leakcheck.targets import Target, builtin
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.session import Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Where a start takes longest.
SLOW = {
    "srt",
    "podman",
    "runsc",
    "nspawn",
    "lxc",
    "mini-swe-agent",
    "deepagents",
    "swe-rex",
    "inspect-ai",
    "edx-codejail",
}
KINDS = (
    ("cpp", "hello"), ("java", "hello"), ("python", "hello"), ("cpp", "memory"),
    ("cpp", "sleep"), ("python", "spin"), ("cpp", "ignore_sigterm"), ("java", "spin"),
    ("cpp", "exit"), ("python", "segv"), ("java", "exception"), ("c", "abort"),
    ("rust", "exception"), ("go", "cpu"), ("node", "output"),
)  # fmt: skip


def wanted(target: Target) -> list[Spec]:
    wall = max(0.3, target.adapter.shortest_wall)
    ready = [
        (language, behaviour)
        for language, behaviour in KINDS
        if LANGUAGES[language].available().ready
        and language not in target.adapter.languages_not
        and behaviour not in target.adapter.behaviours_not
    ]
    specs = [spec(language, behaviour) for language, behaviour in ready]
    return [spec(one.language, one.behaviour, wall=wall) if one.about.ends_by else one for one in specs]


def wrong(target: Target, specs: Sequence[Spec]) -> list[str]:
    """Return what differs from the known status, exit code and signal."""
    found = []
    submissions = [build(one) for one in specs]
    with ArenaHost(target, 0, [one.bundle for one in submissions]) as host:
        session = Session(target, host)
        for submission in submissions:
            done = session.submit(session.prepare(submission), submission)
            got = done.reply
            lacks = target.adapter.may_lack_signal and got.signal is None
            if got.status != submission.expect:
                found.append(f"{submission.name}: {got.status}, not {submission.expect}: {done.words}")
            elif submission.expect_exit is not None and got.exit_code != submission.expect_exit:
                found.append(f"{submission.name}: exit code {got.exit_code}: {done.words}")
            elif submission.expect_signal not in (None, got.signal) and not lacks:
                found.append(f"{submission.name}: signal {got.signal}: {done.words}")
    return found


@pytest.mark.parametrize(
    "target",
    [pytest.param(one, marks=[pytest.mark.slow] if one.name in SLOW else []) for one in builtin()],
    ids=lambda target: target.name,
)
def test_each_submission_gets_its_status(target: Target) -> None:
    state = tried(target)
    if state.state != "ready":
        pytest.skip(f"{state.state}: {state.reason}; {state.hint}")
    assert wrong(target, wanted(target)) == []


# Two targets wait for what the program left running, half a minute each time.
@pytest.mark.slow
@pytest.mark.parametrize("target", builtin(), ids=lambda target: target.name)
def test_what_is_hostile_is_ok_with_every_target(target: Target) -> None:
    state = tried(target)
    if state.state != "ready":
        pytest.skip(f"{state.state}: {state.reason}; {state.hint}")
    hostile = [one.name for one in BEHAVIOURS.values() if one.hostile]
    language = "cpp" if LANGUAGES["cpp"].available().ready else "python"
    assert wrong(target, [spec(language, behaviour) for behaviour in hostile]) == []
