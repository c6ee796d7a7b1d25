"""What explains a finding, as data; a part of the contract ``leakcheck.campaign/1``."""

import msgspec

from leakcheck.report import Command
from leakcheck.trials.outcome import Outcome

__all__ = ["Explanation", "Frame", "Life", "Step"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A call: the name of its point, the call with what is hostile escaped, and what it returned, if it did."""

    point: str
    call: str
    result: str = ""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A function that had not returned: its name if the program has it, and its address in the program's file."""

    program: str
    address: int
    function: str = ""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What made something that was left, and what would have removed it; points, empty if there is none or not known.

    `released` is the point of a run without the fault, `how` what is to be said of it in words, `tried` what the
    recovery did about it: calls, with what they returned.
    """

    kind: str
    label: str
    created: str = ""
    released: str = ""
    how: str = "not known"
    tried: list[str] = []

    def __str__(self) -> str:
        """Return it as a sentence, without the label."""
        if not self.created:
            return f"which call created it is {self.how}"
        end = f"released at {self.released}; {self.how}" if self.released else self.how
        return f"created at {self.created}, {end}"


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What explains a finding.

    `at` is the call of the fault, `last` what the same process called before it, `following` what it calls next in a
    run without the fault; `lives` has the life of what is left, `stack` the functions of the thread that made the
    call, the innermost first, `recovery` the commands of the recovery, `notes` what is not known, and why.
    """

    plan: str
    outcome: Outcome
    at: Step | None = None
    last: list[Step] = []
    following: Step | None = None
    lives: list[Life] = []
    stack: list[Frame] = []
    recovery: list[Command] = []
    notes: list[str] = []
