"""Checks an adapter, also somebody else's, against a run of the real sandbox.

``leakcheck check ./mine.toml`` prints what it found. Everything runs in an arena, so that nothing outlives the check.
"""

import shlex
import signal
import sys
import time
from collections.abc import Sequence

import msgspec

from leakcheck.campaigns.before import isolation_gaps
from leakcheck.campaigns.place import ArenaPlace, HostPlace, Place
from leakcheck.campaigns.stages import Stages, ended, memory, text
from leakcheck.deliver import say
from leakcheck.errors import TargetError, UsageError
from leakcheck.render import printable
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Availability, Target

__all__ = ["CHECKS", "Finding", "check", "tried"]

CHECKS = ("probe", *BUILTIN, "recovery")
"""What `check` does, in order."""

_START = 20.0


class Finding(msgspec.Struct, frozen=True):
    """What one check of `CHECKS` gave; `detail` says what was wrong."""

    check: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


def check(target: Target, only: Sequence[str] = CHECKS, *, host: bool = False) -> list[Finding]:
    """Run the checks `only` of `target` in an arena, and return what each found.

    With `host` they run where the caller is. A crash leaves processes behind where the target does not recover them:
    only where those cannot matter.

    Raises:
        UsageError: there is no such check.
        TargetError: there could be no arena.
    """
    unknown = [one for one in only if one not in CHECKS]
    if unknown:
        raise UsageError(f"unknown check {unknown[0]!r}: one of {', '.join(CHECKS)}")
    findings = []
    place: Place = HostPlace(target, 0) if host else ArenaPlace(target, 0)
    with place:
        stages = Stages(target, place)
        for one in only:
            began = time.monotonic()
            try:
                detail = _detail(stages, one)
            except (TargetError, OSError) as error:
                detail = str(error)
            findings.append(Finding(one, not detail, printable(detail), round(time.monotonic() - began, 3)))
        if wrong := stages.recover():
            findings.append(Finding("recovery", passed=False, detail=printable(f"at the end: {wrong}")))
    return findings


def _detail(stages: Stages, one: str) -> str:
    if one == "probe":
        return "; ".join(isolation_gaps(stages))
    if one == "recovery":
        return _recovery(stages)
    return _submission(stages, BUILTIN[one])


def _submission(stages: Stages, submission: Submission) -> str:
    done = stages.outcome(stages.prepare(submission), submission)
    outcome = done.outcome
    wrong = []
    if outcome.verdict != submission.expect:
        wrong.append(f"verdict {outcome.verdict} instead of {submission.expect}")
    if submission.expect_exit is not None and outcome.exit_code != submission.expect_exit:
        wrong.append(f"exit code {outcome.exit_code} instead of {submission.expect_exit}")
    lacks = stages.target.adapter.may_lack_signal and outcome.signal is None
    if submission.expect_signal is not None and outcome.signal != submission.expect_signal and not lacks:
        wrong.append(f"signal {outcome.signal} instead of {submission.expect_signal}")
    return f"{', '.join(wrong)}; it ended with {done.code}: {done.words}" if wrong else ""


def _recovery(stages: Stages) -> str:
    """Kill the supervisor while the payload runs, recover twice, and run the next submission in that box."""
    long = Submission(name="long", program=("/bin/sh", "-c", "echo started; sleep 600; exit 0"), wall=60)
    argv = stages.prepare(long)
    with memory() as output:
        supervisor = stages.start(argv, output)
        until = time.monotonic() + _START
        while "started" not in text(output) and not ended(supervisor, 10) and time.monotonic() < until:
            pass
        started = "started" in text(output)
        supervisor.send_signal(signal.SIGKILL)
        stages.wait(supervisor, 0, argv[0])
        if not started:
            return f"the payload did not start: {text(output).strip()[-300:]}"
    wrong = stages.recover() or stages.recover() or _submission(stages, BUILTIN["ok"])
    return f"after the kill: {wrong}" if wrong else ""


def tried(target: Target) -> Availability:
    """Return the availability of `target`, and find out by the submission ``ok``, in an arena, whether it can run."""
    state = target.availability()
    if state.state != "ready":
        return state
    failed = next((finding for finding in check(target, ["ok"]) if not finding.passed), None)
    if failed is None:
        return state
    return Availability("unable", f"tried: {failed.detail}", f"more: leakcheck check {target.name}")


if __name__ == "__main__":
    from leakcheck.cli import main

    say(f"python -m leakcheck.conformance is now: leakcheck check {shlex.join(sys.argv[1:])}")
    sys.argv[1:1] = ["check"]
    main()
