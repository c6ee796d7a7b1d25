"""The timed kill: ``forced:WHO@MSms[,sleeping]``, where WHO is killed MS milliseconds after the supervisor's start."""

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

__all__ = ["KILLS", "Kill", "Timed", "ended", "kill", "kill_plan"]

Kill: TypeAlias = Literal["supervisor", "tree", "freeze"]
"""Which processes are killed: only the launched process; the whole tree, one by one; the whole tree, stopped first."""
KILLS: tuple[Kill, ...] = get_args(Kill)

_LATEST_MS = 3_600_000
_ARGUMENT = re.compile(r"([a-z]+)@(\d+(?:\.\d+)?)ms")


def kill_plan(who: Kill, after_ms: float, *, sleeping: bool = False) -> Plan:
    """Return the plan of a kill; with `sleeping` the payload sleeps instead of ending by itself."""
    return Plan("forced", f"{who}@{after_ms:.3f}ms", ("sleeping",) * sleeping)


class Timed:
    """Kills at an instant. Instants after the run's end are valid too: then the trial observes what follows the run."""

    kinds: ClassVar[tuple[str, ...]] = ("forced",)
    may_miss: ClassVar[bool] = True

    def __init__(self, plan: Plan, who: Kill, after_ms: float) -> None:
        self.plan, self.who, self.after_ms = plan, who, after_ms

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise `UsageError` if it does not describe a kill."""
        found = _ARGUMENT.fullmatch(plan.argument)
        who = next((known for known in KILLS if found and known == found[1]), None)
        if found is None or who is None or plan.flags not in ((), ("sleeping",)):
            raise UsageError(f"plan {str(plan)!r}: give forced:WHO@MSms[,sleeping], WHO one of {', '.join(KILLS)}")
        if float(found[2]) > _LATEST_MS:
            raise UsageError(f"plan {str(plan)!r}: the kill must come within an hour, {_LATEST_MS} ms")
        return cls(plan, who, float(found[2]))

    def apply(self, trial: Trial) -> Evidence:
        """Wait for the instant, and kill unless the supervisor has ended by then."""
        # poll() counts whole milliseconds; the rest is slept.
        if ended(trial.supervisor, int(self.after_ms - trial.elapsed_ms)):
            return Evidence(fired=False)
        time.sleep(max(0.0, (self.after_ms - trial.elapsed_ms) / 1000))
        when = trial.elapsed_ms
        kill(trial.supervisor, trial.tree, self.who)
        return Evidence(fired=True, when_ms=when)


def ended(process: Supervisor, ms: int) -> bool:
    """Wait up to `ms` milliseconds; return whether `process` has ended."""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(max(0, ms)))


def kill(supervisor: Supervisor, tree: Callable[[], set[psutil.Process]], who: Kill) -> None:
    """Kill only the supervisor, or its whole `tree`, stopped first if `who` is ``"freeze"``."""
    if who == "supervisor":
        supervisor.send_signal(signal.SIGKILL)
        return
    held: dict[psutil.Process, int] = {}
    try:
        for number in (signal.SIGSTOP, signal.SIGKILL) if who == "freeze" else (signal.SIGKILL,):
            _signal_all(tree, number, held)
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
        for process in new:
            signalled.add(process)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[process], number)


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
