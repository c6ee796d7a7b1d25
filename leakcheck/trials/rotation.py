"""Chooses which of several shared arenas takes the next submission, while the others drain and are observed."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence

from leakcheck.errors import NativeError, TargetError
from leakcheck.trials.attribution import Run
from leakcheck.trials.shared_arena import SharedArena


class Rotation:
    """Chooses which of several arenas takes the next submission; with `observe` false they are never observed.

    A round has `size` submissions, or more while no other arena is ready; there were some `before` the first. Arenas
    are observed in the background; `error` is why an observation failed.
    """

    def __init__(self, arenas: Sequence[SharedArena], size: int, *, before: int = 0, observe: bool = True) -> None:
        self.rounds = before
        self.error = ""
        self._size, self._observes = size, observe
        self._ready = list(arenas)
        self._rounds: dict[int, _Round] = {}
        self._changed = threading.Condition()
        self._over = False
        self._open = self._opened(self._ready.pop(0))
        self._observer = threading.Thread(target=self._observe, name="leakcheck-observer", daemon=True)
        self._observer.start()

    @contextlib.contextmanager
    def turn(self, number: int, box: int) -> Generator[tuple[SharedArena, Run], None, None]:
        """Yield the arena in which submission `number` runs in `box`, with its `Run`."""
        with self._changed:
            if len(self._open.runs) >= self._size and self._ready and self._observes:
                self._open.closed = True
                self._open = self._opened(self._ready.pop(0))
                self._changed.notify_all()
            mine = self._open
            run = Run(number, box, mine.number, began=time.time())
            mine.runs.append(run)
            mine.active += 1
        try:
            yield mine.arena, run
        finally:
            with self._changed:
                mine.active -= 1
                self._changed.notify_all()

    def end(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Observe the last round too, once nothing runs any more, unless `given_up` returns true."""
        with self._changed:
            self._open.closed = True
            self._over = True
            self._changed.notify_all()
        while self._observer.is_alive() and not given_up():
            self._observer.join(0.2)

    def _opened(self, arena: SharedArena) -> "_Round":
        self.rounds += 1
        opened = self._rounds[self.rounds] = _Round(arena, self.rounds)
        return opened

    def _observe(self) -> None:
        while (quiet := self._quiet()) is not None:
            try:
                if self._observes:
                    quiet.arena.observe(quiet.number, quiet.runs)
            except (TargetError, NativeError, OSError) as error:
                self.error = f"observation after round {quiet.number}: {error}"
            with self._changed:
                del self._rounds[quiet.number]
                self._ready.append(quiet.arena)
                self._changed.notify_all()

    def _quiet(self) -> "_Round | None":
        """Wait for a closed round whose runs are all over; None if there will be no more."""
        with self._changed:
            while True:
                for one in self._rounds.values():
                    if one.closed and one.active == 0:
                        return one
                if self._over and not self._rounds:
                    return None
                self._changed.wait()


class _Round:
    def __init__(self, arena: SharedArena, number: int) -> None:
        self.arena, self.number = arena, number
        self.runs: list[Run] = []
        self.active = 0
        self.closed = False
