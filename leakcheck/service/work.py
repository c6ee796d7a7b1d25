"""Who works on which job: the processes whose arguments have the word that marks it."""

import contextlib
import json
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Self

from leakcheck.arena import Arena

__all__ = ["WORK_ENDS", "Runs"]

_PAUSE = 0.008
_TOGETHER = 0.3
"""Seconds; processes that are killed take a moment to go."""
WORK_ENDS = 2.0
"""Seconds that the processes of a job may take to end after its end."""


class Runs:
    """Watches the processes of an arena while it is entered.

    A job whose creation has a ``{unique}`` word is at work while a process has that word in its arguments. A process
    whose parent has it too belongs to the same run; so the number of those whose parent has not is the number of runs.
    It looks every 8 ms, so a run that is shorter may not be seen. `by_id` is whether the id of a job is such a word.
    """

    def __init__(self, arena: Arena, *, by_id: bool = False) -> None:
        self._arena, self._by_id = arena, by_id
        self._marks: set[str] = set()
        self._known: dict[tuple[int, str, str], int] = {}
        self._together: dict[str, float] = defaultdict(float)
        self._before = 0.0
        self._runs: Counter[str] = Counter()
        self._alive: dict[str, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leakcheck-runs", daemon=True)
        self.most = 0
        """The most jobs that were at work at an instant."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def mark(self, payload: Any, job: str = "") -> str:
        """Return the word that marks the `job` that `payload` creates, and watch for it; empty if there is none."""
        if self._by_id and job:
            self._marks.add(job)
            return job
        text = json.dumps(payload)
        start = text.find("leakcheck-job-")
        if start < 0:
            return ""
        length = len("leakcheck-job-")
        while text[start + length : start + length + 1].isdigit():
            length += 1
        word = text[start : start + length]
        self._marks.add(word)
        return word

    def count(self, mark: str) -> int:
        """Return how many runs of the job with this mark were seen."""
        return self._runs[mark]

    def last(self, mark: str) -> float | None:
        """Return the time of the monotonic clock at which it was last seen at work; None if never."""
        return self._alive.get(mark)

    def is_at_work(self, mark: str) -> bool:
        """Return whether a process works on the job with this mark now."""
        return mark in self._look(time.monotonic())

    def wait_idle(self, mark: str, seconds: float) -> None:
        """Wait until no process works on the job with this mark, at most so many seconds."""
        until = time.monotonic() + seconds
        while self.is_at_work(mark) and time.monotonic() < until:
            time.sleep(_PAUSE)

    @property
    def twice(self) -> list[str]:
        """The marks of jobs of which more than one run was seen."""
        return [mark for mark in sorted(self._marks) if self._runs[mark] > 1]

    @property
    def at_once(self) -> list[str]:
        """The marks of jobs of which two runs were at work at the same time, for longer than a run takes to end."""
        return sorted(mark for mark, seconds in self._together.items() if seconds > _TOGETHER)

    @property
    def why(self) -> str:
        """Why nothing is known of processes; empty if something is."""
        return "" if self._alive else "no process had the word of a job in its arguments"

    def _watch(self) -> None:
        while not self._ended.wait(_PAUSE):
            now = time.monotonic()
            at_work = self._look(now) if self._marks else set()
            self.most = max(self.most, len(at_work))

    def _look(self, now: float) -> set[str]:
        found = {pid: one for pid in self._arena.pids() if (one := self._one(pid)) is not None}
        with self._lock:
            at_work: dict[str, set[int]] = defaultdict(set)
            # A process belongs for good to the run in which it was first seen.
            for pid in found:
                at_work[found[pid][0]].add(self._run_of(pid, found))
            for mark, runs in at_work.items():
                self._alive[mark] = now
                if len(runs) > 1:
                    # Whoever looks seldom, on a busy machine, has seen little.
                    self._together[mark] += min(max(0.0, now - self._before), 5 * _PAUSE)
            self._before = now
            return {*at_work}

    def _run_of(self, pid: int, found: dict[int, tuple[str, int, str]]) -> int:
        mark, parent, start = found[pid]
        key = (pid, start, mark)
        if key not in self._known:
            above = found.get(parent)
            if above is not None and above[0] == mark and parent != pid:
                self._known[key] = self._run_of(parent, found)
            else:
                self._runs[mark] += 1
                self._known[key] = self._runs[mark]
        return self._known[key]

    def _one(self, pid: int) -> tuple[str, int, str] | None:
        """Return mark, parent and start time of a process that has a mark."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not self._by_id and b"leakcheck-job-" not in words:
                return None
            text = words.decode(errors="replace")
            # The longest first: one may begin another.
            mark = next((one for one in sorted(self._marks, key=len, reverse=True) if one in text), None)
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if mark is not None and fields[0] not in "ZX":
                return mark, int(fields[1]), fields[19]
        return None
