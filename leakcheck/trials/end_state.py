"""What an arena holds, by other means than the oracle's: to know whether two runs end in the same state."""

import contextlib
import os
from collections import Counter
from pathlib import Path

from leakcheck.arena import Arena
from leakcheck.trials.similarity import fixed


def end_state(arena: Arena) -> Counter[str]:
    """Return how many processes, mounts, cgroups and files of each name are in `arena`, without what varies by run.

    It reads the process ids of the arena's cgroups, the mount table of its first process, the directories of its
    cgroups, and those that hold all that was written.
    """
    found: Counter[str] = Counter()
    for pid in arena.pids():
        with contextlib.suppress(OSError):
            found[f"process {Path(f'/proc/{pid}/comm').read_text().strip()}"] += 1
    for line in Path(f"/proc/{arena.init}/mountinfo").read_text().splitlines():
        found[f"mount {fixed(line.split()[4])}"] += 1
    for hierarchy, top in arena.cgroups.items():
        for path, _, _ in os.walk(top):
            found[f"cgroup {hierarchy} {fixed(os.path.relpath(path, top))}"] += 1
    for place, fd in arena.written:
        for path, directories, files, _ in os.fwalk(".", dir_fd=fd):
            for name in (*directories, *files):
                found[f"file {fixed(os.path.normpath(f'{place}/{path}/{name}'))}"] += 1
    return found
