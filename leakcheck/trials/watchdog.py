"""Reports a hang: where the driver's threads are, and where in the kernel the target's processes wait."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

# Interval of its checks, in seconds.
_ASK = 1.0
_MOST = 200


class Watchdog:
    """While entered, checks every second how long nothing has happened; calls `stalled` once, after `limit` seconds.

    `idle` returns the seconds since the last sign of life.
    """

    def __init__(self, idle: Callable[[], float], limit: Callable[[], float], stalled: Callable[[float], None]) -> None:
        self._idle, self._limit, self._stalled = idle, limit, stalled
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leakcheck-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_ASK):
            idle = self._idle()
            if idle > self._limit():
                self._stalled(idle)
                return


def driver_stacks() -> str:
    """Return the stack of each thread of this process, except the calling one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            stack = "".join(traceback.format_stack(frame)).rstrip()
            parts.append(f"thread {names.get(ident, ident)}:\n{stack}")
    return "\n".join(parts)


def process_stacks(pids: Iterable[int]) -> str:
    """Return name, state, system call and kernel stack of each of these processes; the last two only for root.

    From /proc/PID/{status,wchan,syscall,stack} (proc(5)); fields that a just-ended process lacks are omitted.
    """
    parts = []
    for pid in sorted(pids)[:_MOST]:
        root = Path("/proc", str(pid))
        status = _read(root / "status")
        if not status:
            continue
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        line = f"process {pid} ({fields.get('Name', '?')}), state {fields.get('State', '?')}"
        for name in ("wchan", "syscall"):
            if text := _read(root / name).strip():
                line += f", {name} {text}"
        stack = "".join(f"\n    {row}" for row in _read(root / "stack").splitlines())
        parts.append(line + stack)
    return "\n".join(parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace")
    except OSError:
        return ""
