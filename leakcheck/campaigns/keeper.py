"""Keeps the result so far while a campaign runs: what was found is not lost if leakcheck is killed."""

import time
from collections.abc import Callable

from leakcheck.campaigns.result import Result

Keep = Callable[[Result], None]
"""Replaces the result that was kept before."""

# Seconds between two results at least, and as a multiple of what one costs: less than 1 % of the time.
_LEAST = 1.0
_COST = 100


class Keeper:
    """Passes the result so far to `keep` after the first trial, and then regularly; `log` receives a first failure."""

    def __init__(self, keep: Keep | None, log: Callable[[str], None]) -> None:
        self._keep, self._log = keep, log
        self._due = 0.0
        self._failed = False

    def offer(self, result: Callable[[], Result], *, now: bool = False) -> None:
        """Keep what `result` returns if the time has come, or `now`."""
        began = time.monotonic()
        if self._keep is None or not (now or began >= self._due):
            return
        try:
            self._keep(result())
        except Exception as error:  # noqa: BLE001 - the campaign continues, whatever the cause
            if not self._failed:
                self._log(f"the result so far is not kept: {error}")
            self._failed = True
        ended = time.monotonic()
        self._due = ended + max(_LEAST, _COST * (ended - began))
