"""Checks an adapter, including third-party ones, against the real sandbox.

``leakcheck check ./mine.toml`` prints the findings. Everything runs in an arena, so that nothing outlives the check.
"""

import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from injectors import injector_for
from injectors.locks import lock_plan
from injectors.state import damage_file
from injectors.timed import ended
from leakcheck.deliver import notify
from leakcheck.errors import TargetError, UsageError
from leakcheck.printable import printable
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Availability, Reply, Target
from leakcheck.trials import open_host
from leakcheck.trials.contender_program import HOLDER
from leakcheck.trials.contest import run_contest
from leakcheck.trials.history import judge
from leakcheck.trials.output import last_words, memory
from leakcheck.trials.payload import SLEEPING, DamagedFiles, payload_runs, state_files
from leakcheck.trials.preflight import run_probe
from leakcheck.trials.session import Session
from leakcheck.trials.state_files import keeps_one
from leakcheck.trials.state_log import mark_log, noted

__all__ = ["CHECKS", "Finding", "check", "tried"]

CHECKS = ("probe", *BUILTIN, "recovery", "locks", "state")
"""The checks that `check` runs, in order.

The last two only in an arena: `locks` of a target that declares some, `state` of one that has a log of damaged state.
"""

_START = 20.0
# A path in a message, in a directory that an arena replaces.
_PATH = re.compile(r"/(?:tmp|run|var/tmp|dev)/[^\s\"':;,)]+")


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
    findings: list[Finding] = []
    with open_host(target, 0, live=live) as host:
        session = Session(target, host)
        declared = {"locks": target.adapter.locks is not None, "state": bool(target.adapter.damage.log)}
        for one in (one for one in only if one not in declared or (host.apart and declared[one])):
            began = time.monotonic()
            try:
                detail = _detail(session, one, starts=any(found.check == "ok" and found.passed for found in findings))
            except (TargetError, OSError) as error:
                detail = str(error)
            if detail and "binds" not in detail:
                hidden = _hidden(session, [*target.launch(BUILTIN["ok"], session.box).argv, *_PATH.findall(detail)])
                detail = f"{detail}; {hidden}" if hidden else detail
            findings.append(Finding(one, not detail, printable(detail), round(time.monotonic() - began, 3)))
        if wrong := session.recover():
            findings.append(Finding("recovery", passed=False, detail=printable(f"at the end: {wrong}")))
    starts = any(found.check == "ok" and found.passed for found in findings)
    return [_again(target, found, live=live) if starts and found.check in BUILTIN else found for found in findings]


def _again(target: Target, found: Finding, *, live: bool) -> Finding:
    """Return the finding of a submission; a failed one is tried again alone, where no earlier run is in its way."""
    if found.passed:
        return found
    with open_host(target, 0, live=live) as host:
        session = Session(target, host)
        try:
            passes = not _submission(session, BUILTIN[found.check])
        except (TargetError, OSError):
            passes = False
        session.recover()
    if not passes:
        return found
    why = "alone it passes: the run before it left something in its way, which leakcheck leaks finds"
    return Finding(found.check, passed=False, detail=f"{found.detail}; {why}", seconds=found.seconds)


def _detail(session: Session, one: str, *, starts: bool) -> str:
    if one == "probe":
        return _probe(session)
    if one == "locks":
        return _locks(session)
    if one == "state":
        return _state(session)
    return _recovery(session) if one == "recovery" else _submission(session, BUILTIN[one], starts=starts)


def _probe(session: Session) -> str:
    probed = run_probe(session)
    if not probed.gaps:
        return ""
    holds = session.target.what_differs(probed.inside, probed.outside)
    none = "nothing that leakcheck can check differs inside; a target that isolates nothing says so: "
    return "; ".join([*probed.gaps, f"what holds here: {holds}" if holds else f'{none}probe = {{ none = "why" }}'])


def _submission(session: Session, submission: Submission, *, starts: bool = False) -> str:
    """Run `submission`; return what is wrong, with what the adapter may lack if the sandbox `starts` its payload."""
    done = session.submit(session.prepare(submission), submission)
    reply = done.reply
    wrong = []
    if reply.status != submission.expect:
        wrong.append(f"status {reply.status} instead of {submission.expect}")
    if submission.expect_exit is not None and reply.exit_code != submission.expect_exit:
        got = "no exit code" if reply.exit_code is None else f"exit code {reply.exit_code}"
        wrong.append(f"{got} instead of {submission.expect_exit}")
    lacks = session.target.adapter.may_lack_signal and reply.signal is None
    if submission.expect_signal is not None and reply.signal != submission.expect_signal and not lacks:
        got = "no signal" if reply.signal is None else f"signal {reply.signal}"
        wrong.append(f"{got} instead of {submission.expect_signal}")
    exits = session.target.adapter.status.source == "exit"
    hint = _hint(reply, submission, done.code, exits=exits) if starts else ""
    return f"{', '.join(wrong)}; it exited with {done.code}: {done.words}{hint}" if wrong else ""


def _hint(reply: Reply, submission: Submission, code: int, *, exits: bool) -> str:
    """Return what the adapter may lack; `exits`: the exit code is the status."""
    if exits and submission.expect == "TLE" and reply.status == "RE":
        return f"; if {code} is its exit code for a timeout, name it: status = {{ timeout = [{code}] }}"
    if exits and submission.expect != "OK" and reply.status == "OK":
        where = "name the file with it, or let the launch write it to one"
        return f'; if its exit code is not its status, {where}: status = {{ source = "json", file = … }}'
    if submission.expect_signal is not None and reply.status == "RE" and reply.signal is None:
        how = " as 128+N" if exits else ""
        return f"; if it never reports a death by signal{how}, say so: may_lack_signal = true"
    return ""


def _recovery(session: Session) -> str:
    """Kill the supervisor while the payload runs, recover twice, and run the next submission in that box."""
    absent: list[str] = []
    wrong = _killed(session, lambda: absent.extend(_absent(session) if session.host.apart else ()))
    if wrong:
        return wrong
    wrong = session.recover() or session.recover() or _submission(session, BUILTIN["ok"])
    if wrong:
        return f"after the kill: {wrong}"
    return absent[0] if absent else ""


def _killed(session: Session, meanwhile: Callable[[], object]) -> str:
    """Kill the supervisor while the payload runs, after `meanwhile`; return why it never ran, empty if it did."""
    argv = session.prepare(SLEEPING)
    with memory() as output:
        supervisor = session.start(argv, output)
        until = time.monotonic() + _START
        while not (reached := payload_runs(session, supervisor, output)) and not ended(supervisor, 10):
            if time.monotonic() > until:
                break
        alone = ended(supervisor, 0)
        meanwhile()
        supervisor.send_signal(signal.SIGKILL)
        code = session.wait(supervisor, 0, argv[0])
        if reached:
            return ""
        how = f"the launch exited with {code}" if alone else f"nothing of it was seen for {_START:g} s"
        return f"the payload did not start: {how}: {last_words(output)}"


def _state(session: Session) -> str:
    """Put garbage into the state of a killed run, recover, and look into the log that is to tell of it."""
    damage = session.target.adapter.damage
    session.renew()
    if wrong := _killed(session, lambda: None):
        return wrong
    paths = [path for one in session.target.adapter.state_files for path in state_files(session, one)]
    garbled = [path for path in paths if damage_file(DamagedFiles(session), path, "garbage")]
    if not garbled:
        return "state_files: after the kill there was no file of them to damage"
    before = mark_log(session)
    wrong = session.recover()
    kept = keeps_one(session)
    what = f"after {garbled[0]} was garbled and the recovery {'failed' if wrong else 'ran'}"
    if not noted(session, before):
        return f"damage.log: {what}, no new line of {damage.log} has one of the words {', '.join(damage.words)}"
    return f"damage.keeps: {what}, there was nothing in {', '.join(damage.keeps)}" if kept is False else ""


def _absent(session: Session) -> Iterator[str]:
    """Yield that a declared file is not there while the payload runs."""
    adapter = session.target.adapter
    declared = [("state_files", path) for path in adapter.state_files]
    declared += [("locks.files", path) for path in (adapter.locks.files if adapter.locks else ())]
    for field, path in declared:
        if not state_files(session, path):
            yield f"{field}: while the payload ran there was no {path}"


def _locks(session: Session) -> str:
    """Let two runs contend for the box, and others come after its holder was killed."""
    for action in ("contend=2", "kill-holder"):
        session.renew()
        injector = injector_for(lock_plan(action))
        evidence, history = run_contest(session, injector, session.prepare(HOLDER))
        # Where nobody can hold starts, the check tells what is seen all the same.
        if broken := [what for outcome, what in judge(history) if outcome != "unknown" or not history.blind]:
            return f"{injector.plan}: {'; '.join(broken)}"
        if not evidence.fired:
            return f"{injector.plan}: the payload was not seen to run, so that it could not be killed"
        if wrong := session.recover():
            return f"after {injector.plan}: {wrong}"
    return ""


def _hidden(session: Session, words: Sequence[str]) -> str:
    """Return which of the `words` is a file that exists on the host and not in its arena; empty if none is."""
    for word in words:
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
