"""What a command has started and made, to see that it goes with it."""

import contextlib
import re
from pathlib import Path

import psutil
from waiting import wait_until

__all__ = ["Offspring"]


class Offspring:
    """The descendants of a process as they are now, and the cgroups of their arenas."""

    def __init__(self, pid: int) -> None:
        self._processes, self.arenas = list[psutil.Process](), set[str]()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._processes = psutil.Process(pid).children(recursive=True)
        for one in self._processes:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{one.pid}/cgroup").read_text()
                self.arenas |= set(re.findall(r"leakcheck-arena-[0-9a-f]+", text))

    def wait_until_gone(self) -> None:
        """Fail unless all of it goes; a warden removes the cgroups of its arenas as its last act."""
        left = psutil.wait_procs(self._processes, timeout=20)[1]
        assert not left
        paths = [path for name in self.arenas for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
        wait_until(f"{paths} are removed", lambda: not any(path.exists() for path in paths))
