"""Reports a hang: where the driver's threads are, and where in the kernel the target's processes wait."""

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

# Interval of its checks, in seconds.
_ASK = 1.0
_MOST = 200


@contextlib.contextmanager
def watchdog(
    idle: Callable[[], float], limit: Callable[[], float], stalled: Callable[[float], None]
) -> Generator[None, None, None]:
    """While entered, check every second how long nothing has happened; call `stalled` once, after `limit` seconds.

    `idle` returns the seconds since the last sign of life.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_ASK):
            if (seconds := idle()) > limit():
                stalled(seconds)
                return

    thread = threading.Thread(target=watch, name="leakcheck-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
