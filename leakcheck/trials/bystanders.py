"""Processes of nobody's in an arena that have a pid which was another's."""

import functools
import os
import time
from typing import TYPE_CHECKING

from injectors.timed import ended, kill
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.live_host import descendants
from leakcheck.trials.output import text

if TYPE_CHECKING:
    from leakcheck.trials.host import Running

__all__ = ["HELD", "Bystanders"]

HELD = 5
"""Seconds for which it is tried to get a pid."""
# Seconds between two tries.
_PAUSE, _STEP = 0.1, 0.003


class Bystanders:
    """Those of one arena."""

    def __init__(self, host: ArenaHost) -> None:
        self._host = host
        self._all: list[Running] = []

    def take(self, pid: int) -> bool:
        """Start a process that has this pid, as the arena shows it; return whether it got it."""
        # The number is in use as long as anything of its session is dying.
        until = time.monotonic() + HELD
        while pid > 1 and time.monotonic() < until:
            if self._start(pid) == pid:
                return True
            self.end()
            time.sleep(_PAUSE)
        return False

    def _start(self, pid: int) -> int:
        """Start a process that gets this pid if it is free; return its pid."""
        output = os.memfd_create("leakcheck-bystander")
        words = 'echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid && { sleep 600 & echo "$!"; wait; }'
        try:
            process = self._host.start(["/bin/sh", "-c", words, "sh", str(pid)], {}, output)
            self._all.append(process)
            until = time.monotonic() + HELD
            while not (text(output).endswith("\n") or ended(process, 0)) and time.monotonic() < until:
                time.sleep(_STEP)
            said = text(output).strip()
            return int(said) if said.isdecimal() else 0
        finally:
            os.close(output)

    def end(self) -> None:
        """End all of them."""
        while self._all:
            process = self._all.pop()
            kill(process, functools.partial(descendants, process), "tree")
            process.wait(HELD)
            process.close()
