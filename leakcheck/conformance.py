"""Checks an adapter, including third-party ones, against the real sandbox.

``leakcheck check ./mine.toml`` prints the findings. Everything runs in an arena, so that nothing outlives the check.
"""

import shlex
import signal
import sys
import time
from collections.abc import Sequence

import msgspec

from injectors.timed import ended
from leakcheck.deliver import notify
from leakcheck.errors import TargetError, UsageError
from leakcheck.render import printable
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Availability, Target
from leakcheck.trials import open_host
from leakcheck.trials.output import memory, text
from leakcheck.trials.preflight import isolation_gaps
from leakcheck.trials.session import Session

__all__ = ["CHECKS", "Finding", "check", "tried"]

CHECKS = ("probe", *BUILTIN, "recovery")
"""The checks that `check` runs, in order."""

_START = 20.0


class Finding(msgspec.Struct, frozen=True):
    """The result of one check of `CHECKS`; `detail` says what was wrong."""

    check: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


def check(target: Target, only: Sequence[str] = CHECKS, *, live: bool = False) -> list[Finding]:
    """Run the checks `only` of `target` in an arena, and return their findings.

    With `live` they run on the caller's own host. A crash leaves processes behind if the target does not recover them,
    so use it only where such processes do no harm.

    Raises:
        UsageError: unknown check.
        TargetError: the arena could not be created.
    """
    if unknown := [one for one in only if one not in CHECKS]:
        raise UsageError(f"unknown check {unknown[0]!r}: one of {', '.join(CHECKS)}")
    findings = []
    with open_host(target, 0, live=live) as host:
        session = Session(target, host)
        for one in only:
            began = time.monotonic()
            try:
                detail = _detail(session, one)
            except (TargetError, OSError) as error:
                detail = str(error)
            findings.append(Finding(one, not detail, printable(detail), round(time.monotonic() - began, 3)))
        if wrong := session.recover():
            findings.append(Finding("recovery", passed=False, detail=printable(f"at the end: {wrong}")))
    return findings


def _detail(session: Session, one: str) -> str:
    if one == "probe":
        return "; ".join(isolation_gaps(session))
    return _recovery(session) if one == "recovery" else _submission(session, BUILTIN[one])


def _submission(session: Session, submission: Submission) -> str:
    done = session.submit(session.prepare(submission), submission)
    reply = done.reply
    wrong = []
    if reply.status != submission.expect:
        wrong.append(f"status {reply.status} instead of {submission.expect}")
    if submission.expect_exit is not None and reply.exit_code != submission.expect_exit:
        wrong.append(f"exit code {reply.exit_code} instead of {submission.expect_exit}")
    lacks = session.target.adapter.may_lack_signal and reply.signal is None
    if submission.expect_signal is not None and reply.signal != submission.expect_signal and not lacks:
        wrong.append(f"signal {reply.signal} instead of {submission.expect_signal}")
    return f"{', '.join(wrong)}; it exited with {done.code}: {done.words}" if wrong else ""


def _recovery(session: Session) -> str:
    """Kill the supervisor while the payload runs, recover twice, and run the next submission in that box."""
    long = Submission(name="long", program=("/bin/sh", "-c", "echo started; sleep 600; exit 0"), wall=60)
    argv = session.prepare(long)
    with memory() as output:
        supervisor = session.start(argv, output)
        until = time.monotonic() + _START
        while "started" not in text(output) and not ended(supervisor, 10) and time.monotonic() < until:
            pass
        started = "started" in text(output)
        supervisor.send_signal(signal.SIGKILL)
        session.wait(supervisor, 0, argv[0])
        if not started:
            return f"the payload did not start: {text(output).strip()[-300:]}"
    wrong = session.recover() or session.recover() or _submission(session, BUILTIN["ok"])
    return f"after the kill: {wrong}" if wrong else ""


def tried(target: Target) -> Availability:
    """Return the availability of `target`; if it is ready, test it with the submission ``ok`` in an arena."""
    state = target.availability()
    failed = [finding for finding in check(target, ["ok"]) if not finding.passed] if state.state == "ready" else []
    if not failed:
        return state
    return Availability("unable", f"tried: {failed[0].detail}", f"more: leakcheck check {target.name}")


if __name__ == "__main__":
    from leakcheck.cli import main

    notify(f"python -m leakcheck.conformance is now called: leakcheck check {shlex.join(sys.argv[1:])}")
    sys.argv[1:1] = ["check"]
    main()
