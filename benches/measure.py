"""Rows of the page, and how contestants are timed side by side."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

Milliseconds = float


@dataclass(frozen=True)
class Row:
    """One line of the page; `passed` is None for what has no target."""

    what: str
    how: str
    median: str
    compared: str = ""
    target: str = ""
    passed: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "**FAIL**", None: ""}[self.passed]
        return f"| {self.what} | {self.how} | {self.median} | {self.compared} | {self.target} | {verdict} |"


def timed(run: Callable[[], object]) -> Milliseconds:
    """Wall clock of one call; what it returns is freed afterwards."""
    began = time.perf_counter()
    kept = run()
    took = time.perf_counter() - began
    del kept
    return took * 1000


def middle(times: list[Milliseconds]) -> str:
    """The median, for people."""
    return f"{statistics.median(times):.1f} ms"


def interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int, *, gap: float = 0
) -> dict[str, list[Milliseconds]]:
    """Times of each contestant, in rounds of one call each, `gap` seconds apart."""
    times: dict[str, list[Milliseconds]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # The first call pays for imports, caches and page tables.
    for _ in range(rounds):
        for name, run in contestants.items():
            if gap:
                time.sleep(gap)
            times[name].append(timed(run))
    return times
