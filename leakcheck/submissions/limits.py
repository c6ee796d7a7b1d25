"""The limits of a submission."""

import math
from typing import Literal, TypeAlias

import msgspec

from leakcheck.errors import UsageError

Status: TypeAlias = Literal["OK", "TLE", "MLE", "RE", "OLE", "IE"]
"""The status that a target reports; IE, internal error, is the target's own failure."""

_MIB = 1 << 20
_HOUR, _TIB = 3600, 1 << 40
_GREATEST = {"wall": _HOUR, "cpu": _HOUR, "memory": _TIB, "processes": 1 << 20, "file_size": _TIB, "output": _TIB}


class Limits(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """The limits of one run.

    Args:
        wall: wall-clock time in seconds; some targets accept only whole seconds.
        cpu: processor time in seconds; most targets accept only whole seconds.
        memory: bytes.
        processes: number of processes and threads at the same time.
        file_size: bytes of one file.
        output: bytes that may be printed.

    Raises:
        UsageError: a limit is zero, negative, not a number, or above one hour or 1 TiB.
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
                raise UsageError(f"limit {name}={value}: give a number above 0, at most {greatest}")
            if name not in ("wall", "cpu") and value != int(value):
                raise UsageError(f"limit {name}={value}: give a whole number")


DEFAULT_LIMITS = Limits()
"""The default limits of a submission."""
