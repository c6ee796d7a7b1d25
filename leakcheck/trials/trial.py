"""One trial: a host, a warm-up run, a baseline, a run under an ending, and what it left at each stage after it."""

import contextlib
import time

import msgspec

from leakcheck.errors import LateError, TargetError
from leakcheck.targets import Target
from leakcheck.trials.aftermath import Aftermath, Remnant
from leakcheck.trials.ending import Ending
from leakcheck.trials.host import ArenaHost, Host, LiveHost
from leakcheck.trials.outcome import Outcome, worst
from leakcheck.trials.session import Session

__all__ = ["Trial", "run_trial"]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one trial showed; times in milliseconds. What nothing ties to it is `untied`, and counts for nothing."""

    ending: Ending
    outcomes: frozenset[Outcome] = frozenset()
    """All that hold; none where it is clean."""
    left: list[Remnant] = []
    detail: str = ""
    timing_ms: dict[str, float] = {}
    settled_ms: float | None = None
    gaps: dict[str, str] = {}
    untied: list[Remnant] = []

    @property
    def outcome(self) -> Outcome:
        """The worst of its outcomes."""
        return worst(self.outcomes)


def run_trial(target: Target, ending: Ending, number: int, *, live: bool, settle: float) -> Trial:
    """Make one trial of `target` from start to end; `settle` in seconds.

    Raises:
        TargetError: no host could be made, or the box could not be made ready in it.
    """
    began = time.monotonic()
    host: Host = LiveHost(target, settle) if live else ArenaHost(target, settle)
    with contextlib.ExitStack() as stack:
        stack.enter_context(host)
        session = Session(target, host, number)
        session.timing_ms["up"] = (time.monotonic() - began) * 1000
        trial = _stages(session, ending)
        down = time.monotonic()
    session.timing_ms["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, timing_ms=session.timing_ms)


def _stages(session: Session, ending: Ending) -> Trial:
    submission = ending.submission(session.target.adapter.shortest_wall)
    with session.timed("warm-up"):
        if wrong := session.again():
            return Trial(ending=ending, outcomes=frozenset({"false-status"}), detail=f"warm-up run: {wrong}")
    session.renew()
    with session.timed("prepare"):
        argv = session.prepare(submission)
    with session.timed("baseline"):
        session.host.begin()
    wrong = ""
    with session.timed("run"):
        if ending.kill is not None:
            session.force(argv, ending)
        else:
            try:
                wrong = session.run(argv, submission)
            except LateError as error:
                # What is there now our own kill may have left.
                return Trial(ending=ending, outcomes=frozenset({"wedged", "false-status"}), detail=str(error))
            except TargetError as error:
                wrong = str(error)
    with session.timed("settle"):
        first = session.host.look()
    settled = max((gone.gone_after_ms for gone in first.transient), default=None)
    after = Aftermath(session, ending, first)
    if first.leaks or ending.kill is not None:
        after.follow()
    outcomes = set(after.outcomes())
    if wrong:
        outcomes.add("false-status")
    detail = [*after.failures, *filter(None, [wrong])]
    if worst(outcomes) == "unknown":
        detail += [f"{kind}: {reason}" for kind, reason in after.gaps.items()]
    untied = [Remnant(leak.kind, leak.class_, leak.label) for leak in first.unattributed]
    return Trial(
        ending=ending,
        outcomes=frozenset(outcomes),
        left=after.left,
        detail="; ".join(detail),
        settled_ms=settled,
        gaps=after.gaps,
        untied=untied,
    )
