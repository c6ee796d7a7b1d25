"""An arena, as what can be exhausted."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from leakcheck.arena import Arena, Process
from leakcheck.trials.host import ENV


class ArenaRoom:
    """What an arena has, and nothing outside of it has."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    @property
    def cgroups(self) -> Mapping[str, str]:
        """The arena's cgroup on the host, by hierarchy."""
        return self._arena.cgroups

    def file_systems(self) -> Sequence[tuple[str, int]]:
        """Return the writable file systems: where commands see them, and a directory of each."""
        # Those of /sys hold cgroups only.
        return [(place, fd) for place, fd in self._arena.written if not place.startswith("/sys")]

    def own(self) -> set[int]:
        """Return the process ids of the arena's first process and of what starts commands in it."""
        return {self._arena.init, self._arena.spawner}

    def tracer(self) -> int:
        """Return the process id of what starts commands in the arena, and traces them."""
        return self._arena.spawner

    def members(self, cgroup: Path) -> set[int]:
        """Return the process ids of all that is in one of the arena's cgroups and below."""
        found: set[int] = set()
        for path, _, _ in os.walk(cgroup):
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in Path(path, "cgroup.procs").read_text().split()}
        return found - {0}

    def tree(self) -> set[psutil.Process]:
        """Return everything else that runs in the arena."""
        found = set()
        for pid in self._arena.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(pid))
        # The pid may be reused before it is looked up.
        still = self._arena.pids()
        return {process for process in found if process.pid in still}

    def start(self, argv: Sequence[str], output: int) -> Process:
        """Start a command in the arena, untraced, that writes to `output`."""
        return self._arena.popen(argv, env=ENV, stdout=output, stderr=output)
