"""Descriptors of earlier tests that the garbage collector closes while a test runs.

A full collection takes longer than the rest of a test's check in a program with many objects, so a test's guard begins
with a collection of young objects only. What an older cycle holds is then in the test's baseline, and a collection
during the test may close it: if the test opens the same file next, its descriptor looks like the old one.
"""

import contextlib
import gc
import os
from collections.abc import Mapping


class Garbage:
    """The descriptors that full collections close from `begin` to `end`."""

    def __init__(self) -> None:
        self._before: dict[int, str] = {}
        self._closed: set[int] = set()

    def begin(self) -> None:
        """Watch each full collection."""
        gc.callbacks.append(self._collected)

    def end(self) -> list[int]:
        """Return the numbers that were closed, whatever they are now."""
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._collected)
        return sorted(self._closed)

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] < 2:
            return
        now = descriptors()
        if phase == "start":
            self._before = now
        else:
            self._closed.update(number for number, target in self._before.items() if now.get(number) != target)


def descriptors() -> dict[int, str]:
    """Return what each descriptor of this process refers to."""
    targets = {}
    # The test may have used up the descriptors, or may have closed this one.
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 (a Path would be garbage during a collection)
            with contextlib.suppress(OSError):
                targets[int(number)] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    return targets
