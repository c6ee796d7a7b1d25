"""The limits that a submission runs under."""

import math
from typing import Literal, TypeAlias

import msgspec

from leakcheck.errors import UsageError

__all__ = ["DEFAULT_LIMITS", "Limits", "Status"]

Status: TypeAlias = Literal["OK", "TLE", "MLE", "RE", "OLE", "IE"]
"""What a target says of a submission; IE, internal error, is the target's own failure."""

_MIB = 1 << 20
_GREATEST: dict[str, float] = {
    "wall": 3600,
    "cpu": 3600,
    "memory": 1 << 40,
    "processes": 1 << 20,
    "file_size": 1 << 40,
    "output": 1 << 40,
}


class Limits(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Limits of one run.

    Args:
        wall: wall-clock time in seconds; some targets take only whole ones.
        cpu: processor time in seconds; most targets take only whole ones.
        memory: bytes.
        processes: how many processes and threads at once.
        file_size: bytes of one file.
        output: bytes that may be printed.

    Raises:
        UsageError: one is zero, negative, no number, or more than an hour or than 1 TiB.
    """

    wall: float = 60
    cpu: float = 10
    memory: int = 256 * _MIB
    processes: int = 64
    file_size: int = 64 * _MIB
    output: int = 16 * _MIB

    def __post_init__(self) -> None:
        for name, greatest in _GREATEST.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 < value <= greatest:
                raise UsageError(f"limit {name}={value}: give a number above 0, {greatest:.0f} at most")
            if name not in ("wall", "cpu") and value != int(value):
                raise UsageError(f"limit {name}={value}: give a whole number")


DEFAULT_LIMITS = Limits()
"""What a submission runs under by default."""
