"""Memory, processors and processes of a trial's arena: limits of its own cgroup, and processes in it that take much."""

import contextlib
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from injectors.alive import executes
from injectors.protocol import Room
from injectors.written import Written
from leakcheck.errors import UnavailableError

if TYPE_CHECKING:
    import psutil

__all__ = ["BALLOON", "Cpu", "Memory", "Processes"]

BALLOON = 64 << 20
"""Bytes of memory that an arena has for a balloon and the target together, beyond what is in use."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Seconds for a balloon to be filled.
_FILLING = 20
# The kernel kills others before the processes that keep the arena up (proc_pid_oom_score_adj(5)). To raise the score of
# those needs no right, as it would to lower that of these.
_FIRST = "1000"


class _Control:
    """A control file of the arena's own cgroup, by its names on v2 and v1 (cgroups(7))."""

    def __init__(self, room: Room, controller: str, v2: str, v1: str, *others: str) -> None:
        places = [Path(top, v1) for name, top in room.cgroups.items() if controller in name.split(",")]
        places += [Path(top, v2) for name, top in room.cgroups.items() if name == "v2"]
        found = next((path for path in places if path.exists()), None)
        if found is None:
            file, hint = " or ".join(sorted({v1, v2})), "" if os.geteuid() == 0 else "; run as root"
            raise UnavailableError(f"no {controller} limit can be set: the arena has no cgroup with {file}{hint}")
        self.path = found
        self.is_v2 = found.name == v2
        self.before = found.read_text().strip()
        self.value = ""
        self._deciding = [path for name in (found.name, *others) if (path := found.with_name(name)).exists()]
        self._written: Written | None = None

    def write(self, value: str) -> None:
        try:
            self.path.write_text(value)
        except OSError as error:
            raise UnavailableError(f"limit {self.path.name} = {value}: {error.strerror}") from error
        self.value = self.path.read_text().strip()
        try:
            self._written = Written(self._deciding)
        except OSError as error:
            self.lift()
            raise UnavailableError(f"limit {self.path.name}: nobody can tell whether it stays: {error}") from error

    def holds(self) -> bool:
        """Return whether it is in force, and was all the time since it was written."""
        # What the run has raised and restored reads as before.
        here = self._written is not None and not self._written.seen()
        return here and self.path.read_text().strip() == self.value

    def lift(self) -> None:
        if self._written is not None:
            self._written.close()
            self._written = None
        if self.value:
            # v1 shows no limit as a number that it does not always take back.
            unlimited = self.path.name == "memory.limit_in_bytes" and int(self.before) > 1 << 60
            self.path.write_text("-1" if unlimited else self.before)
            self.value = ""

    def count(self, *names: str) -> int:
        """Return the sum of the counters ``FILE`` or ``FILE:KEY``, as far as the cgroup and those below have them.

        On v1, the cgroup of a process counts what a limit above has refused it.
        """
        found = 0
        for top, _, _ in os.walk(self.path.parent):
            for name in names:
                file, _, key = name.partition(":")
                # It may be removed meanwhile.
                with contextlib.suppress(OSError):
                    for line in Path(top, file).read_text().splitlines():
                        words = line.split()
                        if words[:1] == [key] or not key:
                            found += int(words[-1])
        return found


class _InCgroup:
    """A limit of the arena's own cgroup, once `_control` is set."""

    lasts = False

    def __init__(self) -> None:
        self._control: _Control | None = None
        self._hits = 0

    def holds(self, room: Room) -> bool:
        """Return whether it is still in force."""
        del room
        return self._control is not None and self._control.holds()

    def lift(self, room: Room) -> None:
        """Release it."""
        del room
        if self._control is not None:
            self._control.lift()


class Processes(_InCgroup):
    """So many processes and threads can be started (pids.max, cgroup-v2.rst)."""

    errors: tuple[str, ...] = ("EAGAIN",)

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it."""
        del payload
        control = _Control(room, "pids", "pids.max", "pids.max")
        # What starts a command may not have been waited for, and counts all the same.
        there = sum(_threads(pid) for pid in room.members(control.path.parent))
        self._hits, self._control = control.count("pids.events:max"), control
        # Who ends makes room for another one, unless there is none for anybody.
        control.write(str(there + self._left if self._left else 0))

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against it."""
        del room
        hits = self._control.count("pids.events:max") - self._hits if self._control else 0
        if hits > 0:
            return f"pids.events counted {hits} refused processes"
        return "" if self._left else "no process could have been started"


class Memory(_InCgroup):
    """The arena has `left` bytes of memory more than are in use; with `balloon`, a process takes so many first."""

    errors: tuple[str, ...] = ("ENOMEM",)
    _EVENTS = ("memory.failcnt", "memory.events:max", "memory.events:oom", "memory.oom_control:oom_kill")
    _KILLS = ("memory.oom_control:oom_kill", "memory.events:oom_kill")

    def __init__(self, left: int, balloon: int = 0) -> None:
        super().__init__()
        self._left, self._size = left, balloon
        self._kills = 0
        self._scores: list[tuple[psutil.Process, str]] = []
        self._balloon: Helper | None = None
        self._moved: dict[int, Path] = {}

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it."""
        del payload
        control = _Control(room, "memory", "memory.max", "memory.limit_in_bytes")
        available = _available()
        if self._size and available < 4 * BALLOON:
            raise UnavailableError(
                f"no room for the balloon: this machine has {available >> 20} MiB of memory available"
            )
        self._control, self._hits, self._kills = control, control.count(*self._EVENTS), control.count(*self._KILLS)
        if self._size:
            self._balloon = Helper(room, ["dd", "if=/dev/zero", f"bs={self._size}", "count=1", "status=none"])
            if not self._balloon.wait_for_output(_FILLING):
                self.lift(room)
                raise UnavailableError(f"no room for the balloon: {self._size >> 10} KiB of memory could not be filled")
        # What keeps the arena up is above the limit: the kernel would kill it once nothing else is left to kill.
        self._moved = _homes(room.own(), control.path.parent)
        for pid in self._moved:
            _move(pid, control.path.parent.parent)
        for process in room.tree():
            score = Path(f"/proc/{process.pid}/oom_score_adj")
            with contextlib.suppress(OSError):
                self._scores.append((process, score.read_text()))
                score.write_text(_FIRST)
        # Its page tables are in use already.
        control.write(str(-(-(int(self._used(control)) + self._left) // _PAGE) * _PAGE))

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against it."""
        del room
        control = self._control
        if control is None:
            return ""
        if (hits := control.count(*self._EVENTS) - self._hits) > 0:
            return f"the memory limit was reached {hits} times"
        if self._balloon is not None and self._balloon.runs():
            return f"a balloon held {self._size >> 20} of {BALLOON >> 20} MiB"
        free = int(control.path.read_text()) - int(self._used(control))
        # Each processor may have taken so much in advance (mm/memcontrol.c, MEMCG_CHARGE_BATCH).
        batches = 64 * _PAGE * (os.cpu_count() or 1)
        return "" if self._left or free > batches else "no memory was left"

    def holds(self, room: Room) -> bool:
        """Return whether it is still in force, and nobody has freed what the balloon took."""
        return super().holds(room) and (self._balloon is None or self._balloon.runs())

    @staticmethod
    def _used(control: _Control) -> str:
        return control.path.with_name("memory.current" if control.is_v2 else "memory.usage_in_bytes").read_text()

    @property
    def killed(self) -> bool:
        """Whether the kernel has killed a process for lack of memory since."""
        control = self._control
        return control is not None and control.count(*self._KILLS) > self._kills

    def lift(self, room: Room) -> None:
        """Release it."""
        super().lift(room)
        for pid, home in self._moved.items():
            # What ran has removed it: the process ends with the arena wherever it is.
            with contextlib.suppress(OSError):
                _move(pid, home)
        self._moved = {}
        if self._balloon is not None:
            self._balloon.end()
            self._balloon = None
        for process, score in self._scores:
            with contextlib.suppress(OSError):
                if process.is_running():
                    Path(f"/proc/{process.pid}/oom_score_adj").write_text(score)
        self._scores.clear()


class Cpu(_InCgroup):
    """A process on each processor spins, with this nice value (nice(2)); or the arena has a share of one processor."""

    errors: tuple[str, ...] = ()
    _PERIOD_US = 20_000

    def __init__(self, *, nice: int = 0, share: int = 0) -> None:
        super().__init__()
        self._nice, self._share = nice, share
        self._spinners: list[Helper] = []
        self._tracer = 0

    def set(self, room: Room, payload: int) -> None:
        """Exhaust it."""
        del payload
        if self._share:
            # A longer period or a burst raises the share, too.
            others = ("cpu.max.burst", "cpu.cfs_period_us", "cpu.cfs_burst_us")
            control = _Control(room, "cpu", "cpu.max", "cpu.cfs_quota_us", *others)
            quota = max(1000, self._PERIOD_US * self._share // 100)
            self._control, self._hits = control, control.count("cpu.stat:nr_throttled")
            if not control.is_v2:
                control.path.with_name("cpu.cfs_period_us").write_text(str(self._PERIOD_US))
            control.write(f"{quota} {self._PERIOD_US}" if control.is_v2 else str(quota))
            return
        # The tracer is no part of the target.
        self._tracer = room.tracer()
        os.setpriority(os.PRIO_PROCESS, self._tracer, min(self._nice, 0))
        for cpu in sorted(os.sched_getaffinity(0)):
            spinner = Helper(room, ["sh", "-c", "echo; while :; do :; done"])
            self._spinners.append(spinner)
            os.sched_setaffinity(spinner.pid, {cpu})
            os.setpriority(os.PRIO_PROCESS, spinner.pid, self._nice)
            if not spinner.wait_for_output(_FILLING):
                self.lift(room)
                raise UnavailableError("no processor could be saturated: a process that spins did not start")

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against it."""
        del room
        if self._control is not None:
            hits = self._control.count("cpu.stat:nr_throttled") - self._hits
            return f"the processor quota was used up {hits} times" if hits > 0 else ""
        busy = [spinner.runs() for spinner in self._spinners]
        return f"{len(busy)} processors were kept busy" if busy and all(busy) else ""

    def holds(self, room: Room) -> bool:
        """Return whether it is still in force, and nobody has ended what keeps the processors busy."""
        return super().holds(room) or (bool(self._spinners) and all(one.runs() for one in self._spinners))

    def lift(self, room: Room) -> None:
        """Release it."""
        super().lift(room)
        if self._tracer:
            # Ours is what it had, and what commands inherit from it.
            os.setpriority(os.PRIO_PROCESS, self._tracer, os.getpriority(os.PRIO_PROCESS, 0))
            self._tracer = 0
        for spinner in self._spinners:
            spinner.end()
        self._spinners.clear()


class Helper:
    """A process of ours in the arena, until its end. Its output is a pipe that only we read."""

    def __init__(self, room: Room, argv: Sequence[str]) -> None:
        self._output, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = room.start(argv, theirs)
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(theirs)
        self.pid = self._process.pid

    def wait_for_output(self, seconds: float) -> bool:
        """Return whether it writes something in so many seconds."""
        written = select.poll()
        written.register(self._output, select.POLLIN)
        return any(event & select.POLLIN for _, event in written.poll(seconds * 1000))

    def runs(self) -> bool:
        """Return whether it has not ended, and nobody has killed it."""
        return executes(self.pid)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FILLING)
        self._process.close()
        os.close(self._output)


def _homes(pids: set[int], top: Path) -> dict[int, Path]:
    """Return the cgroup of each of the `pids` that is in `top` or below; on v2, the arena's first process is below."""
    found: dict[int, Path] = {}
    for path, _, _ in os.walk(top):
        with contextlib.suppress(OSError):
            found |= dict.fromkeys(pids & set(map(int, Path(path, "cgroup.procs").read_text().split())), Path(path))
    return found


def _move(pid: int, cgroup: Path) -> None:
    # It may have ended.
    with contextlib.suppress(ProcessLookupError):
        (cgroup / "cgroup.procs").write_text(str(pid))


def _threads(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
