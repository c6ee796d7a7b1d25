"""Trials with an arena each, several at a time; or on the live host, one at a time."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial, run_trial


def job_count(jobs: int, *, live: bool) -> int:
    """Return the number of parallel trials: 0 means one per CPU; on the live host it is always one."""
    return 1 if live else jobs or os.cpu_count() or 1


class Isolated(Executor[Trial]):
    """Makes `jobs` trials at a time."""

    def __init__(self, target: Target, ui: Ui, stop: Stop, *, jobs: int, live: bool, settle: float) -> None:
        self._target, self._ui, self._stop = target, ui, stop
        self._jobs, self._live, self._settle = job_count(jobs, live=live), live, settle

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[Trial]:
        """Yield each trial once it is made."""
        began = time.monotonic()
        rest = enumerate(cases())
        pending: set[Future[Trial]] = set()
        announced = False
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="leakcheck") as pool:

            def begin() -> None:
                if self._stop() or self.failure is not None or (work := next(rest, None)) is None:
                    return
                number, case = work
                made = pool.submit(run_trial, self._target, case, number % 100, live=self._live, settle=self._settle)
                pending.add(made)

            for _ in range(self._jobs):
                begin()
            while pending:
                # With a timeout, so that signal handlers can run.
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if self._stop() and not announced:
                    announced = True
                    self._ui.finishing(len(pending))
                for one in done:
                    pending.discard(one)
                    if (error := one.exception()) is not None:
                        self.fail(error)
                    else:
                        self.took = time.monotonic() - began
                        yield one.result()
                    begin()
