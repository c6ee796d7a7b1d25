"""One submission in a box of a shared arena."""

import time

from leakcheck.errors import LateError, TargetError
from leakcheck.submissions import Submission
from leakcheck.targets import Reply
from leakcheck.trials.attribution import MARK, Run
from leakcheck.trials.record import Record
from leakcheck.trials.shared_arena import SharedArena


def run_shared(arena: SharedArena, submission: Submission, run: Run, waited: float) -> Record:
    """Run `submission` in its box of `arena`, after it `waited` so many seconds; return its record."""
    session = arena.sessions[run.box]
    session.env = {MARK: str(run.number)}
    session.started = lambda process: arena.attribution.started(process, run)
    session.renew()
    run.name = session.box.name
    began = time.monotonic()
    status, reply, detail, cpu = "none", None, "", None
    try:
        done = session.submit(session.prepare(submission), submission)
    except TargetError as error:
        detail = str(error)
        run.late = isinstance(error, LateError)
    else:
        reply, cpu, status = done.reply, done.cpu, done.reply.status
        wrong = _wrong(submission, reply)
        detail = f"{wrong}: {done.words}" if wrong else ""
    ended = time.monotonic()
    return Record(
        id=run.number,
        spec=submission.name,
        expect=submission.expect,
        status=status,
        right=not detail,
        exit_code=None if reply is None else reply.exit_code,
        signal=None if reply is None else reply.signal,
        wall_ms=round((ended - began) * 1000, 3),
        cpu_ms=None if cpu is None else round(cpu * 1000, 3),
        queued_ms=round(waited * 1000, 3),
        ended_s=ended,
        box=run.box,
        round=run.round,
        detail=detail,
        late=run.late,
    )


def _wrong(submission: Submission, reply: Reply) -> str:
    """Return what is wrong with the reply, as far as the target reports it; empty if nothing."""
    if reply.status != submission.expect:
        return f"status {reply.status}, not {submission.expect}"
    for what, got, expect in (
        ("signal", reply.signal, submission.expect_signal),
        ("exit code", reply.exit_code, submission.expect_exit),
    ):
        if expect is not None and got is not None and got != expect:
            return f"{what} {got}, not {expect}"
    return ""
