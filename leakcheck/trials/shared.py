"""Parallel submissions in two shared arenas that alternate: one thread per box takes submissions from a queue."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from leakcheck.errors import StoppedError, TargetError
from leakcheck.report import Leak
from leakcheck.stats.host_load import HostLoad
from leakcheck.stats.own_use import OwnUse
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.host import Running
from leakcheck.trials.record import Record
from leakcheck.trials.rotation import Rotation
from leakcheck.trials.runner import GRACE, Stop
from leakcheck.trials.schedule import Schedule
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.shared_arena import SharedArena, warm_up
from leakcheck.trials.watchdog import driver_stacks, process_stacks, watchdog

_ROUND = 100
_MOST_STALLS = 20
# Seconds beyond each run's grace without progress that count as a hang.
_STALLED = 30.0


class Shared(Executor[Record]):
    """Runs submissions, `concurrency` at a time.

    `first_run` is what the warm-up left, `deepest` the maximum depth of the queue, `queue_size` its bound,
    `cleanup_failures` are failures outside the submissions themselves, `sick` the errors of the target's health check,
    `stalls` the stacks of what hung. If the campaign was cut off, `done` are the submissions made before that, in
    `rounds_before` rounds. With an `interval`, one is due every so many seconds. `own` is what this process uses.
    """

    def __init__(
        self,
        target: Target,
        ui: Ui,
        stop: Stop,
        *,
        concurrency: int,
        settle: float,
        queue_size: int,
        duration: float | None,
        observe: bool,
        interval: float = 0,
    ) -> None:
        self._target, self._ui, self._stop = target, ui, stop
        self._concurrency, self._duration, self._observes = concurrency, duration, observe
        self.schedule = Schedule(interval)
        self.queue_size = queue_size or 2 * concurrency
        self._queue: queue.Queue[tuple[int, Submission, float] | None] = queue.Queue(self.queue_size)
        self._made: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[int, tuple[float, Submission]] = {}
        self._last = time.monotonic()
        self._stalled = threading.Event()
        self._until = float("inf")
        self.deepest = 0
        self.rounds_before = 0
        self._rotation: Rotation | None = None
        self.done: set[int] = set()
        self.host_load = HostLoad()
        self.own = OwnUse()
        self.first_run = list[Leak]()
        self.stalls: list[str] = []
        self.cleanup_failures: list[str] = []
        self.sick: list[str] = []
        self.arenas = [
            SharedArena(target, concurrency, settle=settle, late=self._on_late) for _ in range(2 if observe else 1)
        ]

    @property
    def rounds(self) -> int:
        """How many rounds have begun."""
        return self.rounds_before if self._rotation is None else self._rotation.rounds

    def over(self) -> bool:
        """Return whether to stop everything, even observations."""
        return self._stop() or self._stalled.is_set()

    def run(self, cases: Callable[[], Iterator[Case]]) -> Iterator[Record]:
        """Yield each submission's record once it is over; then recover the boxes, and observe one last time."""
        with contextlib.ExitStack() as stack:
            for arena in self.arenas:
                stack.enter_context(arena)
            self._warm_up()
            size = max(_ROUND, 2 * self._concurrency)
            rotation = self._rotation = Rotation(self.arenas, size, before=self.rounds_before, observe=self._observes)
            self._last = time.monotonic()
            began = self._last - self.before
            with watchdog(self._idle, self._patience, self._on_stall):
                try:
                    yield from self._driven(rotation, cases())
                except GeneratorExit as gone:
                    self.fail(gone)
                    raise
                self.took = time.monotonic() - began
                if not self._stalled.is_set():
                    rotation.end(self._stalled.is_set)
                if rotation.error:
                    self.fail(TargetError(rotation.error))
                if not self._stalled.is_set():
                    self._finish(rotation.rounds + 1)

    def _warm_up(self) -> None:
        """Run once in each box, as many at a time as later, record what that leaves, and take the baselines."""
        for number, arena in enumerate(self.arenas):
            if self._observes:
                arena.host.begin()
            self._ui.log(f"warming up {len(arena.sessions)} boxes, arena {number + 1} of {len(self.arenas)}")
            with ThreadPoolExecutor(len(arena.sessions)) as pool:
                failed = [wrong for wrong in pool.map(self._warm, arena.sessions) if wrong]
            if self._stop():
                raise StoppedError(f"{self._target.name}: interrupted before the first submission")
            if failed:
                raise TargetError(f"{self._target.name}: warm-up run: {failed[0]}")
            if self._observes:
                self.first_run = arena.host.observe().leaks
                arena.host.begin()

    def _warm(self, session: Session) -> str:
        return "" if self._stop() else session.again(warm_up())

    def _driven(self, rotation: Rotation, cases: Iterator[Case]) -> Iterator[Record]:
        """Run submissions until there are no more, the time is over, or an end is requested; yield their records."""
        workers = [
            threading.Thread(target=self._work, args=(rotation, box), name=f"leakcheck-box-{box}", daemon=True)
            for box in range(self._concurrency)
        ]
        producer = threading.Thread(target=self._produce, args=(cases,), name="leakcheck-producer", daemon=True)
        for thread in (*workers, producer):
            thread.start()
        working = len(workers)
        while (working and not self._stalled.is_set()) or not self._made.empty():
            with contextlib.suppress(queue.Empty):
                if (record := self._made.get(timeout=0.2)) is None:
                    working -= 1
                else:
                    yield record

    def _produce(self, cases: Iterator[Case]) -> None:
        if self._duration is not None:
            self._until = time.monotonic() + self._duration - self.before
        try:
            for number, case in enumerate(cases):
                if number in self.done:
                    continue
                self.schedule.wait(self._ending)
                queued = time.monotonic()
                while not self._ending() and not self._put((number, case.submission, queued)):
                    pass
                if self._ending():
                    break
        except Exception as error:  # noqa: BLE001 - it ends the campaign, which then reports it
            self.fail(error)
        if self._stop():
            self._notify(lambda: self._ui.finishing(len(self._running)))
        for _ in range(self._concurrency):
            while not (self._put(None) or self._stalled.is_set()):
                pass

    def _ending(self) -> bool:
        """Return whether no further submission may start, not even a queued one."""
        return time.monotonic() >= self._until or self.over() or self.failure is not None

    def _notify(self, notify: Callable[[], None]) -> None:
        """Report to the user; if that fails, the campaign ends, but this thread continues."""
        try:
            notify()
        except Exception as error:  # noqa: BLE001 - the caller's error
            self.fail(error)

    def _put(self, work: tuple[int, Submission, float] | None) -> bool:
        """Put an item into the queue once there is room; return whether there was room in time."""
        try:
            self._queue.put(work, timeout=0.2)
        except queue.Full:
            return False
        self.deepest = max(self.deepest, self._queue.qsize())
        return True

    def _work(self, rotation: Rotation, box: int) -> None:
        while (work := self._queue.get()) is not None:
            number, submission, queued = work
            if self._ending():
                continue
            with self._lock:
                self._running[box] = (time.monotonic(), submission)
            waited = time.monotonic() - queued
            # A thread's failure ends the campaign, which then reports it; the queue is still drained.
            try:
                with rotation.turn(number, box) as (arena, run):
                    record = arena.run(submission, run, waited)
                if record.status == "none":
                    self.cleanup_failures.append(f"submission {number}: {record.detail}")
                self._made.put(record)
            except BaseException as error:  # noqa: BLE001 - see above
                self.fail(error)
            finally:
                with self._lock:
                    del self._running[box]
                    self._last = time.monotonic()
        self._made.put(None)

    def _finish(self, last_round: int) -> None:
        """Recover every box, run the health check, observe one last time, and check that the target still works."""
        for arena in self.arenas:
            for wrong in arena.recover():
                self._last = time.monotonic()
                self.cleanup_failures += filter(None, [wrong])
            if wrong := arena.sessions[0].health():
                self.sick.append(wrong)
            if self._observes:
                arena.observe(last_round, [])
            if wrong := arena.sessions[0].again():
                self.cleanup_failures.append(f"next submission in box 0: {wrong}")

    def _idle(self) -> float:
        self.host_load.sample()
        self.own.sample()
        return time.monotonic() - self._last

    def _patience(self) -> float:
        """Return the longest time, in seconds, without any end: the longest running limit, its grace, a reserve."""
        with self._lock:
            walls = [submission.wall for _, submission in self._running.values()]
        return max(walls, default=NEXT.wall) + 2 * GRACE + _STALLED + self.schedule.interval

    def _on_stall(self, idle: float) -> None:
        self._note_stall(f"nothing has ended for {idle:.0f} s", driver_stacks())
        self._stalled.set()

    def _on_late(self, arena: SharedArena, process: Running) -> None:
        stacks = process_stacks(one.pid for one in arena.host.tree(process))
        self._note_stall(f"a run outlived its limit by {GRACE:.0f} s", stacks)

    def _note_stall(self, what: str, stacks: str) -> None:
        with self._lock:
            self.stalls.append(f"{what}\n{stacks}" if len(self.stalls) < _MOST_STALLS else what)
            first = len(self.stalls) == 1
        # All stacks are in the result; show only one while running.
        self._notify(lambda: self._ui.log(f"{what}\n{stacks}" if first else what))
