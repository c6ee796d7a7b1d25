"""Fault plans: a fault's recipe in one line, ``KIND[:ARGUMENT][,FLAG…]``, which parses back and replays."""

import re

import msgspec

from leakcheck.errors import UsageError

__all__ = ["NORMAL", "Plan"]

_LINE = re.compile(r"([a-z][a-z-]*)(?::([^,\s]+))?((?:,[a-z]+)*)")


class Plan(msgspec.Struct, frozen=True):
    """What is done to one run: by the injector of this `kind`, to its `argument`, with `flags`."""

    kind: str
    argument: str = ""
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the line that `read` reads back."""
        return ",".join([f"{self.kind}:{self.argument}" if self.argument else self.kind, *self.flags])

    @classmethod
    def read(cls, line: str) -> "Plan":
        """Return the plan of `line`; whether its kind and argument mean something only its injector knows.

        Raises:
            UsageError: it has not the form of a plan.
        """
        if (found := _LINE.fullmatch(line)) is None:
            raise UsageError(f"plan {line!r}: give KIND[:ARGUMENT][,FLAG]")
        return cls(found[1], found[2] or "", tuple(found[3].split(",")[1:]))


NORMAL = Plan("normal")
"""No fault."""
