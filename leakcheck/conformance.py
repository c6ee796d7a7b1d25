"""Checks an adapter, including third-party ones, against the real sandbox.

``leakcheck check ./mine.toml`` prints the findings. Everything runs in an arena, so that nothing outlives the check.
"""

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from injectors.timed import ended
from leakcheck.deliver import notify
from leakcheck.errors import TargetError, UsageError
from leakcheck.printable import printable
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Availability, Target
from leakcheck.trials import open_host
from leakcheck.trials.output import last_words, memory
from leakcheck.trials.payload import SLEEPING, payload_runs
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
                hidden = _why(session, target.launch(BUILTIN["ok"], session.box).argv)
                detail = f"{error}; {hidden}" if hidden else str(error)
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
    argv = session.prepare(SLEEPING)
    with memory() as output:
        supervisor = session.start(argv, output)
        until = time.monotonic() + _START
        while not (reached := payload_runs(session, supervisor, output)) and not ended(supervisor, 10):
            if time.monotonic() > until:
                break
        supervisor.send_signal(signal.SIGKILL)
        session.wait(supervisor, 0, argv[0])
        if not reached:
            return f"the payload did not start: {_why(session, argv) or last_words(output)}"
    wrong = session.recover() or session.recover() or _submission(session, BUILTIN["ok"])
    return f"after the kill: {wrong}" if wrong else ""


def _why(session: Session, argv: Sequence[str]) -> str:
    """Return which program or file of the launch exists on the host and not in its arena; empty if all do."""
    for word in argv:
        if word.startswith("/") and Path(word).exists():
            try:
                session.host.read(Path(word))
            except FileNotFoundError:
                return f"the arena does not show {word}; name it, or its directory, in binds"
            except OSError:
                continue
    return ""


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
