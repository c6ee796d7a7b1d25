"""Checks of what long jobs need of a machine, before they begin; `CHECKS` has them by name.

Each makes tiny samples of its own in a directory that is removed afterwards, downloads nothing, and is bounded in time.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from leakcheck.errors import UsageError
from leakcheck.preflight import cache, disk, ffmpeg, gpu, redis
from leakcheck.preflight.outcome import Outcome, State

__all__ = ["CHECKS", "Outcome", "State", "preflight"]

Check: TypeAlias = Callable[[Path], Iterator[Outcome]]

CHECKS: dict[str, Check] = {
    "ffmpeg": ffmpeg.check,
    "gpu": gpu.check,
    "cache": cache.check,
    "disk": disk.check,
    "redis": redis.check,
}
"""The checks by name; each is given an empty directory and yields its outcomes one by one."""


def preflight(names: list[str]) -> Iterator[Outcome]:
    """Yield the outcomes of these checks as they come; raise `UsageError` for a name that is none."""
    for name in names:
        if name not in CHECKS:
            raise UsageError(f"--preflight {name!r}: there is no such check; name some of {', '.join(CHECKS)}")
    for name in dict.fromkeys(names):
        with tempfile.TemporaryDirectory(prefix="leakcheck-preflight-") as directory:
            yield from CHECKS[name](Path(directory))
