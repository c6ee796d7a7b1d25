"""When submissions are due: one every so many seconds, or each as soon as there is room."""

import time
from collections.abc import Callable

# Seconds after which a pause looks whether an end was asked for.
_WAIT = 0.2


class Schedule:
    """One submission is due every `interval` seconds; `behind` is by how many seconds the latest was late."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.behind = 0.0
        self._due: float | None = None

    def wait(self, ending: Callable[[], bool]) -> None:
        """Wait until the next one is due, or until `ending` returns true."""
        if not self.interval:
            return
        self._due = time.monotonic() if self._due is None else self._due + self.interval
        while not ending() and (early := self._due - time.monotonic()) > 0:
            time.sleep(min(early, _WAIT))
        self.behind = max(self.behind, time.monotonic() - self._due)
