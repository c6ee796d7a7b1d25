"""One trial: a host, a warm-up run, a baseline, a run under a fault plan, and what it left at each stage after it."""

import contextlib
import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from injectors import Checked, Evidence, injector_for
from leakcheck.errors import LateError, UnavailableError, UsageError
from leakcheck.report import Command
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.aftermath import Aftermath
from leakcheck.trials.case import Case
from leakcheck.trials.contest import run_contest
from leakcheck.trials.cores import core_files
from leakcheck.trials.exhausted import Exhausted
from leakcheck.trials.history import History, judge
from leakcheck.trials.openers import noting_openers
from leakcheck.trials.outcome import Outcome, worst
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.session import Session
from leakcheck.trials.trace_requests import explaining
from leakcheck.trials.tracing import Tracing
from leakcheck.trials.turns import Turn
from leakcheck.trials.warm import WarmState


class Recorder(Protocol):
    """Receives what was recorded of a trial."""

    def collect(self, session: Session, tracing: Tracing) -> None:
        """Read it, while the arena and the reports exist."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one trial; times in milliseconds. Residue that nothing ties to it is `untied` and does not count.

    `outcomes` are all that hold, none if it is clean. `fired` is whether the fault happened, `wrong` what is wrong with
    the status. `recovery` are the commands of the target's recovery, and how they ended. `state` is that in which the
    stage of a fault ended, if it is compared with others. `noted` is whether the target's log tells of damage to its
    state; None if there is no such log or damage; `kept` whether a damaged state file is where the target keeps such.
    `exhausted` is what is known of a run under an exhausted resource. `history` is what contenders for the box came to.
    """

    case: Case
    outcomes: frozenset[Outcome] = frozenset()
    fired: bool = True
    left: list[Remnant] = []
    detail: str = ""
    wrong: str = ""
    recovery: list[Command] = []
    timing_ms: dict[str, float] = {}
    settled_ms: float | None = None
    gaps: dict[str, str] = {}
    untied: list[Remnant] = []
    state: Mapping[str, int] = {}
    noted: bool | None = None
    kept: bool | None = None
    exhausted: Exhausted | None = None
    history: History | None = None

    @property
    def outcome(self) -> Outcome:
        """The worst of its outcomes."""
        return worst(self.outcomes)


def run_trial(
    target: Target,
    case: Case,
    number: int,
    *,
    live: bool,
    settle: float,
    warm: WarmState | None = None,
    turn: Turn | None = None,
    recorder: Recorder | None = None,
) -> Trial:
    """Make one trial of `target` from start to end; `settle` in seconds. With `warm`, it needs no warm-up run.

    `turn` is lent while it waits for teardown. With a `recorder`, all commands are recorded with their calls.
    It raises `TargetError` if the host could not be created, or the box could not be prepared in it.
    """
    began = time.monotonic()
    injector = injector_for(case.plan)
    with contextlib.ExitStack() as stack:
        # A fault of the arena's must be there when a target runs for the first time.
        warm = warm if not injector.arena_options else None
        options = injector.arena_options if warm is None else {"last_pid": warm.last_pid}
        options = {**options, "turn": turn}
        host = stack.enter_context(open_host(target, settle, live=live, options=options))
        session = Session(target, host, number)
        session.timing_ms["up"] = (time.monotonic() - began) * 1000
        with session.timed("warm-up"):
            wrong = session.again() if warm is None else warm.restore(session)
            for _ in range(case.further):
                wrong = wrong or _further(session)
        if wrong:
            trial = Trial(case=case, outcomes=frozenset({"false-status"}), detail=f"warm-up run: {wrong}")
        else:
            trial = _stages(session, case, injector, recorder)
        # Another trial may begin while this one's arena ends.
        if turn is not None:
            turn.lend()
        down = time.monotonic()
    session.timing_ms["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, timing_ms=session.timing_ms)


def _further(session: Session) -> str:
    session.renew()
    return session.again()


def _stages(session: Session, case: Case, injector: Checked, recorder: Recorder | None) -> Trial:
    session.renew()
    requests = injector.trace or _no_request
    with session.traced(injector) if recorder is None else session.tracing(explaining(requests)) as tracing:
        try:
            trial = _tested(session, case, injector)
        except UnavailableError as error:
            refused = Exhausted(refused=str(error))
            return Trial(case=case, outcomes=frozenset({"unknown"}), fired=False, detail=str(error), exhausted=refused)
        if recorder is not None and tracing is not None:
            recorder.collect(session, tracing)
        if tracing is not None and tracing.failing():
            other = "" if injector.exhausts else "; it has kills before its calls only, with the flag 'notified'"
            raise UsageError(
                f"plan {str(case.plan)!r}: {session.target.name} uses ptrace itself, so that it cannot be traced{other}"
            )
        return trial


def _no_request(*_: object) -> None:
    """Return that a command is not traced."""


def _tested(session: Session, case: Case, injector: Checked) -> Trial:
    argv = None
    # What the preparation makes has to go, too: a kill of the run or of its clean-up may leave it.
    faulted = "prepare" in injector.stages
    early = faulted or (session.host.apart and bool(session.target.adapter.prepare))
    replaced: set[str] = set()
    if early:
        with session.timed("baseline"):
            session.host.begin()
    if not faulted:
        with session.timed("prepare"), noting_openers(session) if injector.contends else contextlib.nullcontext():
            argv = session.prepare(case.submission)
        with session.timed("baseline"):
            if early:
                replaced = session.host.replaced()
            else:
                session.host.begin()
    with session.timed("prepare" if argv is None else "run"):
        try:
            evidence, wrong, history = _run(session, case, injector, argv)
        except LateError as error:
            # Residue that exists now may come from our own kill.
            return Trial(case=case, outcomes=frozenset({"wedged", "false-status"}), detail=str(error))
    with session.timed("settle"):
        first = session.host.observe()
        if argv is None:
            replaced = {leak.key for leak in first.leaks if leak.replaces}
        first = msgspec.structs.replace(first, leaks=[leak for leak in first.leaks if leak.key not in replaced])
    cores = [f"the core file {path} was left" for path in core_files(session.host, first.leaks)]
    succeeded, words, exhausted = session.succeeded, session.last_words, session.exhausted
    after = Aftermath(session, case, injector, first, succeeded=succeeded)
    if first.leaks or not injector.harmless:
        after.follow()
    broken = [] if history is None else [*judge(history)]
    unsure = [exhausted.unsure] if exhausted is not None and exhausted.unsure else []
    unclear: list[Outcome] = ["unknown" for _ in unsure]
    outcomes = {*after.outcomes(), *(outcome for outcome, _ in broken), *unclear}
    if wrong:
        outcomes.add("false-status")
    fired = _fired(session, injector, evidence)
    if not (fired or injector.may_miss):
        outcomes.add("not-reached")
    if cores and exhausted is not None:
        exhausted = msgspec.structs.replace(exhausted, crash="; ".join(filter(None, [exhausted.crash, *cores])))
    detail = [*(what for _, what in broken), *after.failures, *filter(None, [wrong]), *cores, *unsure]
    if "silent" in outcomes and succeeded:
        detail.append(f"the run reported {case.submission.expect}; its last words: {words}")
    if worst(outcomes) == "unknown":
        detail += [f"{kind}: {reason}" for kind, reason in after.gaps.items()]
    return Trial(
        case=case,
        outcomes=frozenset(outcomes),
        fired=fired,
        left=after.left,
        detail="; ".join(detail),
        wrong=wrong,
        recovery=after.recovery,
        settled_ms=max((gone.gone_after_ms for gone in first.transient), default=None),
        gaps=after.gaps,
        untied=[Remnant.of(leak) for leak in first.unattributed],
        state=after.state,
        noted=after.noted,
        kept=after.kept,
        exhausted=exhausted,
        history=history,
    )


def _run(
    session: Session, case: Case, injector: Checked, argv: list[str] | None
) -> tuple[Evidence, str, History | None]:
    """Run the submission under the fault, in a box that is prepared if there is an `argv`."""
    if argv is None:
        return *session.prepare_under(injector, case.submission), None
    if injector.contends:
        evidence, history = run_contest(session, injector, argv)
        return evidence, "", history
    return *session.run_under(injector, argv, case.submission), None


def _fired(session: Session, injector: Checked, evidence: Evidence) -> bool:
    """Return whether all of the fault happened."""
    apart = injector.acts_between or injector.contends or injector.exhausts is not None
    if injector.trace is None or apart:
        return evidence.fired
    # The kill of a run that is to be recovered is not the one of its recovery.
    return all(session.hits(stage) >= count for stage, count in injector.stages.items())
