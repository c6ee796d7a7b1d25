"""The timed kill: ``forced:WHO@[payload+]MSms[,SIGNAL][,sleeping]``.

WHO gets the signal, SIGKILL unless it is named, MS milliseconds after the supervisor's start, or after the payload's.
"""

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, Self, TypeAlias, get_args

import psutil

from injectors.plan import Plan
from injectors.protocol import Evidence, Supervisor, Trial
from leakcheck.errors import UsageError

__all__ = ["KILLS", "PATIENCE", "SIGNALS", "Kill", "Timed", "ended", "kill", "kill_plan"]

Kill: TypeAlias = Literal["supervisor", "tree", "freeze"]
"""Which processes are killed: only the launched process; the whole tree, one by one; the whole tree, stopped first."""
KILLS: tuple[Kill, ...] = get_args(Kill)

SIGNALS = {"sigterm": signal.SIGTERM, "sigint": signal.SIGINT, "sighup": signal.SIGHUP}
"""Flags that name a signal other than SIGKILL: an operator's, and a closed terminal's."""

PATIENCE = 5
"""Seconds that who got such a signal has for its own clean-up; then SIGKILL follows, as an operator's does."""
# Seconds that a payload has to start.
_START = 30
_LATEST_MS = 3_600_000
_INSTANT = re.compile(r"(payload\+)?(\d+(?:\.\d+)?)ms", re.ASCII)
_FORM = (
    "give forced:WHO@MSms[,SIGNAL][,sleeping] or forced:WHO@payload+MSms[,SIGNAL],sleeping, "
    f"WHO one of {', '.join(KILLS)}, SIGNAL one of {', '.join(SIGNALS)}"
)


def kill_plan(who: Kill, after_ms: float, *, sleeping: bool = False, payload: bool = False, sig: str = "") -> Plan:
    """Return the plan of a kill; with `sleeping` the payload sleeps instead of ending by itself.

    With `payload`, which needs `sleeping`, the time counts from the payload's start; `sig` is one of `SIGNALS`.
    """
    flags = ((sig,) if sig else ()) + ("sleeping",) * sleeping
    return Plan("forced", f"{who}@{'payload+' * payload}{after_ms:.3f}ms", flags)


class Timed:
    """Kills at an instant. Instants after the run's end are valid too: then the trial observes what follows the run."""

    kinds: ClassVar[tuple[str, ...]] = ("forced",)

    def __init__(self, plan: Plan, who: Kill, after_ms: float, *, payload: bool, number: int) -> None:
        self.plan, self.who, self.after_ms = plan, who, after_ms
        self.payload, self.number = payload, number
        # A payload that sleeps is reached, or the plan was not tested.
        self.may_miss = not payload

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that names the part that is wrong."""

        def wrong(what: str) -> UsageError:
            return UsageError(f"plan {str(plan)!r}: {what}")

        whom, _, instant = plan.argument.partition("@")
        who = next((known for known in KILLS if known == whom), None)
        if who is None:
            raise wrong(f"{whom or 'nothing'!r} names nobody; {_FORM}")
        if (found := _INSTANT.fullmatch(instant)) is None:
            raise wrong(f"{instant or 'nothing'!r} is no instant; {_FORM}")
        rest = list(plan.flags)
        sent = rest.pop(0) if rest[:1] and rest[0] in SIGNALS else ""
        sleeping = rest[:1] == ["sleeping"] and bool(rest.pop(0))
        if rest:
            raise wrong(f"{rest[0]!r} is no flag at this place; {_FORM}")
        if sent and who == "freeze":
            raise wrong(f"a stopped tree acts on SIGKILL alone; omit {sent}")
        if found[1] and not sleeping:
            raise wrong("only a payload that sleeps is waited for; add ,sleeping")
        if float(found[2]) > _LATEST_MS:
            raise wrong(f"the kill must come within an hour, {_LATEST_MS} ms")
        number = SIGNALS[sent] if sent else signal.SIGKILL
        return cls(plan, who, float(found[2]), payload=bool(found[1]), number=number)

    def apply(self, trial: Trial) -> Evidence:
        """Wait for the instant, and kill unless the supervisor has ended by then."""
        until = trial.elapsed_ms + _START * 1000
        while self.payload and not trial.payload_runs():
            if ended(trial.supervisor, 2) or trial.elapsed_ms > until:
                return Evidence(fired=False)
        at = self.after_ms + (trial.elapsed_ms if self.payload else 0)
        # poll() counts whole milliseconds; the rest is slept.
        if ended(trial.supervisor, int(at - trial.elapsed_ms)):
            return Evidence(fired=False)
        time.sleep(max(0.0, (at - trial.elapsed_ms) / 1000))
        when = trial.elapsed_ms
        kill(trial.supervisor, trial.tree, self.who, self.number)
        if self.number != signal.SIGKILL and not ended(trial.supervisor, PATIENCE * 1000):
            kill(trial.supervisor, trial.tree, self.who)
        return Evidence(fired=True, when_ms=when)


def ended(process: Supervisor, ms: int) -> bool:
    """Wait up to `ms` milliseconds; return whether `process` has ended."""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(max(0, ms)))


def kill(
    supervisor: Supervisor, tree: Callable[[], set[psutil.Process]], who: Kill, number: int = signal.SIGKILL
) -> None:
    """Signal only the supervisor, or its whole `tree`, stopped first if `who` is ``"freeze"``."""
    if who == "supervisor":
        supervisor.send_signal(number)
        return
    held: dict[psutil.Process, int] = {}
    try:
        for one in (signal.SIGSTOP, number) if who == "freeze" else (number,):
            _signal_all(tree, one, held)
    finally:
        for pidfd in held.values():
            os.close(pidfd)


def _signal_all(tree: Callable[[], set[psutil.Process]], number: int, held: dict[psutil.Process, int]) -> None:
    """Signal all of `held` and of the tree, and add the tree to `held`: an orphan leaves its supervisor's tree."""
    signalled: set[psutil.Process] = set()
    # The next pass finds processes forked during this one; the loop is bounded because a fork bomb never stops.
    until = time.monotonic() + 1
    while time.monotonic() < until:
        while _hold(tree() - held.keys(), held) and time.monotonic() < until:
            pass
        if not (new := held.keys() - signalled):
            return
        # Nobody is to act on the end of what it started.
        for process in sorted(new, key=_age):
            signalled.add(process)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[process], number)


def _age(process: psutil.Process) -> tuple[float, int]:
    with contextlib.suppress(psutil.Error):
        return process.create_time(), process.pid
    # It has ended.
    return 0, process.pid


def _hold(processes: Iterable[psutil.Process], held: dict[psutil.Process, int]) -> bool:
    """Open a pidfd of each of `processes` that still runs; return whether there was one."""
    before = len(held)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid)
            # Compare the start time: the pid may have been reused before the pidfd was open.
            if process.pid > 1 and process.is_running():
                held[process] = pidfd
            else:
                os.close(pidfd)
    return len(held) > before
