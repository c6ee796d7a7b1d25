"""Trials with an arena each, several at a time; or on the live host, one at a time."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from leakcheck.arena import prepare_observation
from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial, run_trial
from leakcheck.trials.turns import Turn, Turns
from leakcheck.trials.warm import WarmState, warm_state

# Fewer trials are faster with their own warm-up runs.
_MANY = 12
# Trials at a time, with those that wait, for each job: more of them only look more often.
_IN_ALL = 8


def job_count(jobs: int, *, live: bool) -> int:
    """Return the number of parallel trials: 0 means one per CPU; on the live host it is always one."""
    return 1 if live else jobs or os.cpu_count() or 1


class Isolated(Executor[Trial]):
    """Makes `jobs` trials at a time, and others that wait for teardown meanwhile.

    If the campaign ends after `enough` trials with the same finding, no more are under way than that, or than jobs:
    those that wait are the ones with findings, and all that have started are finished.
    """

    def __init__(
        self, target: Target, ui: Ui, stop: Stop, *, jobs: int, live: bool, settle: float, enough: int = 0
    ) -> None:
        self._target, self._ui, self.stop = target, ui, stop
        self._count = 0
        self._warm: WarmState | None = None
        self._jobs, self._live, self._settle = job_count(jobs, live=live), live, settle
        # Who asks for one job gets one trial at a time.
        self._most = 1 if live or jobs == 1 else self._jobs * _IN_ALL
        if enough:
            self._most = min(self._most, max(self._jobs, enough))

    def _warm_up(self) -> None:
        """Before a trial starts: once they are many, make the warm-up runs of all later ones unnecessary."""
        self._count += 1
        if self._count == _MANY and not self._live:
            self._warm, why = warm_state(self._target, stop=self.stop)
            if self._warm is None:
                self._ui.log(f"each trial makes a warm-up run, which takes longer: {why}")

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[Trial]:
        """Yield each trial once it is made."""
        rest = enumerate(cases())
        began = time.monotonic() - self.before
        pending: set[Future[Trial]] = set()
        announced = False
        woken = threading.Event()
        turns = Turns(self._jobs, woken.set)
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._most, thread_name_prefix="leakcheck"))
            if not self._live:
                stack.callback(prepare_observation(settings=False))
            while True:
                # What is done may decide what comes next.
                while (
                    len(pending) < self._most
                    and not any(one.done() for one in pending)
                    and not self.stop()
                    and self.failure is None
                    and turns.take()
                ):
                    if (work := next(rest, None)) is None:
                        turns.give()
                        break
                    self._warm_up()
                    made = pool.submit(self._make, *work, Turn(turns))
                    made.add_done_callback(lambda _: woken.set())
                    pending.add(made)
                if not pending:
                    return
                # With a timeout, so that signal handlers can run.
                woken.wait(0.2)
                woken.clear()
                if self.stop() and not announced:
                    announced = True
                    self._ui.finishing(len(pending))
                for one in [one for one in pending if one.done()]:
                    pending.discard(one)
                    if (error := one.exception()) is not None:
                        self.fail(error)
                    else:
                        self.took = time.monotonic() - began
                        yield one.result()

    def _make(self, number: int, case: Case, turn: Turn) -> Trial:
        try:
            return run_trial(
                self._target,
                case,
                number % 100,
                live=self._live,
                settle=self._settle,
                warm=self._warm,
                turn=turn,
            )
        finally:
            turn.end()
