"""Fault plans: a fault's recipe in one line, ``KIND[:ARGUMENT][,FLAG…]``, which parses back and replays."""

import msgspec

from leakcheck._native import parse_plan

__all__ = ["NORMAL", "Plan"]


class Plan(msgspec.Struct, frozen=True):
    """The fault of one run: `kind` selects the injector, `argument` and `flags` are for it."""

    kind: str
    argument: str = ""
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the line that `read` parses back."""
        return ",".join([f"{self.kind}:{self.argument}" if self.argument else self.kind, *self.flags])

    @classmethod
    def read(cls, line: str) -> "Plan":
        """Return the plan in `line`. Only its injector can check its kind and argument.

        Raises:
            UsageError: it does not have the form of a plan.
        """
        kind, argument, flags = parse_plan(line)
        return cls(kind, argument, tuple(flags))


NORMAL = Plan("normal")
"""No fault."""
