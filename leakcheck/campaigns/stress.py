"""The campaign ``stress``: many submissions, many at once; is every status right, and does nothing stay?"""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from leakcheck.campaigns.result import Campaign, Record
from leakcheck.campaigns.settings import Settings
from leakcheck.campaigns.source import StressOptions, submissions, warm_up
from leakcheck.campaigns.stress_result import Totals, judged
from leakcheck.errors import CompileError, LateError, StoppedError, TargetError, UsageError
from leakcheck.stats.host_load import HostLoad
from leakcheck.submissions import Submission, cache_directory
from leakcheck.targets import Target
from leakcheck.trials.culprits import isolate
from leakcheck.trials.host import Running
from leakcheck.trials.preflight import probe
from leakcheck.trials.session import GRACE, NEXT, Session, Stop, never
from leakcheck.trials.shared import MARK, Rotation, Run, SharedArena
from leakcheck.trials.watchdog import Watchdog, driver_stacks, process_stacks

if TYPE_CHECKING:
    from leakcheck.report import Leak

__all__ = ["StressOptions", "stress"]

_ROUND = 100
_MOST_STALLS = 20
# Beyond the grace that each run has: then nothing goes on.
_STALLED = 30.0


def stress(
    target: Target,
    options: StressOptions,
    *,
    progress: Callable[[Record, int], None] | None = None,
    finishing: Callable[[int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    stop: Stop = never,
) -> Campaign:
    """Run the campaign in arenas.

    `progress` is told of every submission with how many were made, `tell` of what is being prepared and of stalls; once
    `stop` returns true none is begun any more, `finishing` is told how many are being run, and the result is that of
    those made.

    Raises:
        UsageError: an option cannot be, or the target cannot tell a status that the mix asks for.
        CompileError: a submission does not compile.
        StoppedError: `stop` returned true before the first submission.
        TargetError: the target cannot be run here, or its isolation is not on.
    """
    options.check()
    target.check_ready()
    say = tell or (lambda _: None)
    source = submissions(target, options)
    if gaps := probe(target, live=False, stop=stop):
        raise TargetError(f"{target.name}: its isolation is not on: {'; '.join(gaps)}")
    settings = Settings()
    return settings.judge(_Driver(target, options, source, progress, finishing, say, stop).run())


class _Driver:
    """Deals submissions into a bounded queue, from which as many threads as there are boxes take them."""

    def __init__(
        self,
        target: Target,
        options: StressOptions,
        source: Iterator[Submission],
        progress: Callable[[Record, int], None] | None,
        finishing: Callable[[int], None] | None,
        say: Callable[[str], None],
        stop: Stop,
    ) -> None:
        self._target, self._options, self._source = target, options, source
        self._progress, self._finishing, self._tell, self._stop = progress, finishing, say, stop
        size = options.queue or 2 * options.concurrency
        self._queue: queue.Queue[tuple[int, Submission, float] | None] = queue.Queue(size)
        self._lock = threading.Lock()
        self._running: dict[int, tuple[float, Submission]] = {}
        self._last = time.monotonic()
        self._stalled = threading.Event()
        self._failure: BaseException | None = None
        self._until = float("inf")
        self._deepest = 0
        self._host_load = HostLoad()
        self.records: list[Record] = []
        self.first_run: list[Leak] = []
        self.stalls: list[str] = []
        self.cleanup_failures: list[str] = []
        self.sick: list[str] = []

    def run(self) -> Campaign:
        """Run all, and return the result."""
        with contextlib.ExitStack() as stack:
            arenas = [
                stack.enter_context(
                    SharedArena(
                        self._target,
                        self._options.concurrency,
                        settle=self._options.settle,
                        needed=[cache_directory()],
                        late=self._late,
                    )
                )
                for _ in range(2 if self._options.looks else 1)
            ]
            self._warm_up(arenas)
            rotation = Rotation(arenas, max(_ROUND, 2 * self._options.concurrency), looks=self._options.looks)
            began = time.monotonic()
            with Watchdog(self._idle, self._patience, self._on_stall):
                self._drive(rotation)
                took = time.monotonic() - began
                if not self._stalled.is_set():
                    rotation.end(self._stalled.is_set)
                if not self._stalled.is_set():
                    self._finish(arenas, rotation)
            if self._failure is not None and not self.records:
                raise self._failure
            if not self.records:
                raise StoppedError(f"{self._target.name}: interrupted before the first submission")
            totals = Totals(
                took=took,
                rounds=rotation.rounds,
                deepest=self._deepest,
                queue=self._queue.maxsize,
                host_load=self._host_load,
                first_run=self.first_run,
                stalls=self.stalls,
                cleanup_failures=self.cleanup_failures,
                sick=self.sick,
                interrupted=self._stop(),
                error=rotation.error or ("" if self._failure is None else str(self._failure)),
            )
            left = [one for arena in arenas for one in arena.left.values()]
            specs = {record.id: record.spec for record in self.records}
            for one in left:
                # A run that failed has no record.
                one.runs = [run for run in one.runs if run in specs]
            isolate(
                self._target,
                left,
                specs,
                frozenset(record.id for record in self.records if record.late),
                settle=self._options.settle,
                needed=[cache_directory()],
                say=self._say,
                stop=lambda: self._stop() or self._stalled.is_set(),
            )
            return judged(self._target, self._options, self.records, arenas, totals)

    def _warm_up(self, arenas: Sequence[SharedArena]) -> None:
        """Run once in each box, as many at a time as later on, note what that leaves, and take the baselines."""
        for number, arena in enumerate(arenas):
            if self._options.looks:
                arena.host.begin()
            self._say(f"warming up {len(arena.sessions)} boxes, arena {number + 1} of {len(arenas)}")
            failed: list[str] = []

            def warm(session: Session, failed: list[str] = failed) -> None:
                if not self._stop() and (wrong := session.again(warm_up())):
                    failed.append(wrong)

            threads = [threading.Thread(target=warm, args=(session,), daemon=True) for session in arena.sessions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self._stop():
                raise StoppedError(f"{self._target.name}: interrupted before the first submission")
            if failed:
                raise TargetError(f"{self._target.name}: warm-up run: {failed[0]}")
            if self._options.looks:
                self.first_run = arena.host.look().leaks
                arena.host.begin()

    def _drive(self, rotation: Rotation) -> None:
        """Run submissions until there are no more, the time is over, or somebody wants to end."""
        workers = [
            threading.Thread(target=self._work, args=(rotation, box), name=f"leakcheck-box-{box}", daemon=True)
            for box in range(self._options.concurrency)
        ]
        self._last = time.monotonic()
        for worker in workers:
            worker.start()
        self._produce()
        if self._stop() and self._finishing is not None:
            self._finishing(len(self._running))
        for _ in workers:
            self._put(None)
        for worker in workers:
            while worker.is_alive() and not self._stalled.is_set():
                worker.join(0.2)

    def _produce(self) -> None:
        if self._options.duration is not None:
            self._until = time.monotonic() + self._options.duration
        numbers = itertools.count() if self._options.wanted is None else range(self._options.wanted)
        for number in numbers:
            if self._ending():
                return
            try:
                submission = next(self._source)
            except (UsageError, CompileError, TargetError, OSError) as error:
                self._fail(error)
                return
            while not self._put((number, submission, time.monotonic())):
                if self._ending():
                    return

    def _ending(self) -> bool:
        """Tell whether no further submission is to begin, nor one that waits."""
        over = time.monotonic() >= self._until
        return over or self._stop() or self._stalled.is_set() or self._failure is not None

    def _fail(self, error: BaseException) -> None:
        # The first says why; the others may follow from it.
        self._failure = self._failure or error

    def _say(self, text: str) -> None:
        """Tell `text`; where nobody can be told any more, the campaign ends, and what says so goes on with its work."""
        try:
            self._tell(text)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._fail(error)

    def _put(self, work: tuple[int, Submission, float] | None) -> bool:
        """Put into the queue, once there is room; tell whether there was before long."""
        while True:
            try:
                self._queue.put(work, timeout=0.2)
            except queue.Full:
                if work is not None or self._stalled.is_set():
                    return False
                continue
            self._deepest = max(self._deepest, self._queue.qsize())
            return True

    def _work(self, rotation: Rotation, box: int) -> None:
        while (work := self._queue.get()) is not None:
            number, submission, queued = work
            if self._ending():
                continue
            with self._lock:
                self._running[box] = (time.monotonic(), submission)
            waited = time.monotonic() - queued
            # One thread's failure ends the campaign, which then says why; the queue is emptied all the same.
            try:
                with rotation.turn(number, box) as (arena, run):
                    record = self._one(arena, submission, run, waited)
                with self._lock:
                    self.records.append(record)
                    if self._progress is not None:
                        self._progress(record, len(self.records))
            except BaseException as error:  # noqa: BLE001 - as said
                self._fail(error)
            finally:
                with self._lock:
                    del self._running[box]
                    self._last = time.monotonic()

    def _one(self, arena: SharedArena, submission: Submission, run: Run, waited: float) -> Record:
        session = arena.sessions[run.box]
        session.env = {MARK: str(run.number)}
        session.started = lambda process: arena.started(process, run)
        session.renew()
        run.name = session.box.name
        began = time.monotonic()
        got, exit_code, signal, detail, cpu = "none", None, None, "", None
        try:
            done = session.submit(session.prepare(submission), submission)
        except TargetError as error:
            detail = str(error)
            run.late = isinstance(error, LateError)
            if not isinstance(error, StoppedError):
                self.cleanup_failures.append(f"submission {run.number}: {detail}")
        else:
            got, exit_code, signal = done.reply.status, done.reply.exit_code, done.reply.signal
            cpu = done.cpu
            wrong = _wrong(submission, got, exit_code, signal)
            detail = f"{wrong}: {done.words}" if wrong else ""
        ended = time.monotonic()
        return Record(
            id=run.number,
            spec=submission.name,
            expect=submission.expect,
            status=got,
            right=not detail,
            exit_code=exit_code,
            signal=signal,
            wall_ms=round((ended - began) * 1000, 3),
            cpu_ms=None if cpu is None else round(cpu * 1000, 3),
            queued_ms=round(waited * 1000, 3),
            ended_s=ended,
            box=run.box,
            round=run.round,
            detail=detail,
            late=run.late,
        )

    def _finish(self, arenas: Sequence[SharedArena], rotation: Rotation) -> None:
        """Recover every box, ask for the target's health, look a last time, and see whether it still works."""
        for arena in arenas:
            for session in arena.sessions:
                session.started = None
                if wrong := session.recover():
                    self.cleanup_failures.append(f"box {session.box.number}: {wrong}")
                self._last = time.monotonic()
            for wrong in arena.recover_rest():
                self.cleanup_failures.append(wrong)
                self._last = time.monotonic()
            if wrong := arena.sessions[0].health():
                self.sick.append(wrong)
            if self._options.looks:
                arena.look(rotation.rounds + 1, [])
                arena.mark_bounded()
            if wrong := arena.sessions[0].again():
                self.cleanup_failures.append(f"next submission in box 0: {wrong}")

    def _idle(self) -> float:
        self._host_load.sample()
        return time.monotonic() - self._last

    def _patience(self) -> float:
        """Return how long, in seconds, nothing may end: the longest that runs, its grace, and some more."""
        with self._lock:
            walls = [submission.wall for _, submission in self._running.values()]
        return max(walls, default=NEXT.wall) + 2 * GRACE + _STALLED

    def _on_stall(self, idle: float) -> None:
        self._stall(f"nothing has ended for {idle:.0f} s\n{driver_stacks()}")
        self._stalled.set()

    def _late(self, arena: SharedArena, process: Running) -> None:
        pids = {one.pid for one in arena.host.tree(process)}
        self._stall(f"a run outlived its limit by {GRACE:.0f} s\n{process_stacks(pids)}")

    def _stall(self, text: str) -> None:
        with self._lock:
            self.stalls.append(text if len(self.stalls) < _MOST_STALLS else text.partition("\n")[0])
            first = len(self.stalls) == 1
        # All stacks are in the result; one is enough to look at meanwhile.
        self._say(text if first else text.partition("\n")[0])


def _wrong(submission: Submission, got: str, exit_code: int | None, signal: int | None) -> str:
    """Return what of the outcome is not as it must be, as far as the target tells; empty if all is."""
    if got != submission.expect:
        return f"status {got}, not {submission.expect}"
    if submission.expect_signal is not None and signal is not None and signal != submission.expect_signal:
        return f"signal {signal}, not {submission.expect_signal}"
    if submission.expect_exit is not None and exit_code is not None and exit_code != submission.expect_exit:
        return f"exit code {exit_code}, not {submission.expect_exit}"
    return ""
