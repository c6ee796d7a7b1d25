"""Fault plans: a fault's recipe in one line, ``KIND[:ARGUMENT][,FLAG…]``, which parses back and replays."""

import msgspec

from leakcheck._native import parse_plan

__all__ = ["NORMAL", "Plan"]


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
        kind, argument, flags = parse_plan(line)
        return cls(kind, argument, tuple(flags))


NORMAL = Plan("normal")
"""No fault."""
