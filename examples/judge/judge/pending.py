"""The queue of ids that wait for a worker: in Redis, if there is one, otherwise the database itself is asked.

Redis only says which job to take next and wakes a worker at once. A worker takes a job by changing its row, so an id
that Redis lost is found in the database, and an id that comes twice is taken once.
"""

import logging
import time
from typing import Any

from judge.defects import planted

_KEY = "judge:pending"
_log = logging.getLogger("judge")


class Pending:
    def __init__(self, url: str) -> None:
        self._redis: Any = None
        if url:
            import redis  # takes half of a worker's start

            self._failed = redis.RedisError
            self._redis = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=0.3)
        self._again: list[str] = []
        self._retry = 0.0
        """When to ask a Redis again that did not answer: until then, nobody waits for it."""

    def put(self, job_id: str) -> None:
        """Announce a job that waits in the database."""
        if (queue := self._reachable()) is not None:
            try:
                queue.lpush(_KEY, job_id, *self._again)
                self._again.clear()
                return
            except self._failed as error:
                self._lost(error)
        if planted("redis-double"):
            self._again.append(job_id)

    def take(self, wait: float) -> str | None:
        """Return the next id, waiting for at most so many seconds; None means: look into the database."""
        if (queue := self._reachable()) is not None:
            try:
                found = queue.brpop([_KEY], timeout=wait)
                if found:
                    return bytes(found[1]).decode(errors="replace")  # whatever anybody put there
                return "" if planted("redis-drop") else None
            except self._failed as error:
                self._lost(error)
        time.sleep(wait)
        return "" if planted("redis-drop") and self._redis is not None else None

    def answers(self) -> bool | None:
        """Return whether Redis can be reached; None without one."""
        if self._redis is None:
            return None
        try:
            return bool(self._redis.ping())
        except self._failed:
            return False

    def _reachable(self) -> Any:
        return self._redis if time.monotonic() >= self._retry else None

    def _lost(self, error: Exception) -> None:
        self._retry = time.monotonic() + 1
        _log.warning("redis: %s; the database is asked instead", error)
