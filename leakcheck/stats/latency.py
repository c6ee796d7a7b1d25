"""How late a process outside of all arenas wakes up: whether the machine goes on while something in it is exhausted."""

import json
import select
import subprocess
import sys
import time
from typing import Self

import msgspec

__all__ = ["Latency", "LatencyProbe"]

# Seconds between two wake-ups, and before the load begins.
_STEP = 0.005
_QUIET = 0.3
_PATIENCE = 30
_MOST = 200_000


class Latency(msgspec.Struct, frozen=True):
    """By how many milliseconds wake-ups were late: the 99th percentile before, and during; and the longest."""

    quiet_p99: float
    p99: float
    longest: float
    wakeups: int


class LatencyProbe:
    """Measures from its entry to its end, in a process of its own."""

    latency: Latency | None = None
    """The result, after the end; None if there could be no process, or it did not give one."""
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError:
            return self
        # Until it has measured the quiet machine.
        if self._process.stdout is not None:
            select.select([self._process.stdout], [], [], _PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        try:
            printed = self._process.communicate(timeout=_PATIENCE)[0]
            self.latency = msgspec.json.decode(printed.splitlines()[-1], type=Latency)
        except (subprocess.TimeoutExpired, IndexError, msgspec.MsgspecError):
            self._process.kill()
            self._process.wait()


def _measure(seconds: float | None) -> list[float]:
    """Return by how many milliseconds each wake-up was late, for so many seconds, or until stdin is closed."""
    late: list[float] = []
    began = time.monotonic()
    while seconds is None or time.monotonic() - began < seconds:
        due = time.monotonic() + _STEP
        over, _, _ = select.select([sys.stdin] if seconds is None else [], [], [], _STEP)
        if over:
            break
        late.append((time.monotonic() - due) * 1000)
        if len(late) > _MOST:
            # Half of them, and the longest of all.
            late = [*sorted(late)[-1:], *late[::2]]
    return late


def _p99(late: list[float]) -> float:
    return round(sorted(late)[int(len(late) * 0.99)], 3) if late else 0.0


def _main() -> None:
    quiet = _measure(_QUIET)
    print(flush=True)
    late = _measure(None)
    found = Latency(_p99(quiet), _p99(late), round(max(late, default=0.0), 3), len(late))
    print(json.dumps(msgspec.to_builtins(found)), flush=True)


if __name__ == "__main__":
    _main()
