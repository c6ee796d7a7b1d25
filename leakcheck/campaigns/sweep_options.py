"""The options of campaigns that visit the points of a target's runs."""

from typing import Annotated, ClassVar, Literal

import msgspec

from injectors import Plan, parse
from injectors.crash import STAGES
from leakcheck.campaigns.campaign import Option, TrialOptions
from leakcheck.errors import UsageError

RUN = ("setup", "execution", "timeout", "cleanup", "verdict")
"""The five phases of a run (QA-REL-001)."""
PHASES = (*RUN, "recovery")
"""Those, and that of the recovery after a crash."""
Ending = Literal["normal", "timeout", "crash"]
Format = Literal["text", "markdown", "json"]


class SweepOptions(TrialOptions, frozen=True, kw_only=True):
    """Which points to visit; a `plan` replaces them all."""

    ending: Annotated[Ending, Option("How the run ends without the fault.")] = "normal"
    phase: Annotated[str, Option(f"Only points of this phase: {', '.join(PHASES)}.", "PHASE")] = ""
    shard: Annotated[str, Option("Only the I-th of N parts of the plans, divided by their names: I/N.", "I/N")] = "1/1"
    iterations: Annotated[int, Option("At most this many trials, drawn by --seed; 0: all, or 20 of a --plan.", "N")] = 0
    within: Annotated[
        float, Option("Start no trial after this many seconds; those before are drawn by --seed; 0: all.", "SECONDS")
    ] = 0
    explain: Annotated[Plan | None, Option("Try this plan once, and explain what it leaves.", "PLAN", parse=parse)] = (
        None
    )
    format: Annotated[Format, Option("How --explain prints it; markdown is a bug report.")] = "text"
    fewest: ClassVar[int] = 0
    of_plan: ClassVar[tuple[str, ...]] = ("ending", "phase", "shard")
    """Options that a plan says itself."""

    def __post_init__(self) -> None:
        """Let a plan that is to be explained be the plan of all trials."""
        if self.explain is not None:
            msgspec.structs.force_setattr(self, "plan", self.plan or self.explain)
            msgspec.structs.force_setattr(self, "iterations", self.iterations or 1)

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.explain not in (None, self.plan):
            raise UsageError("--explain --plan: both name a plan; give one of the two")
        if self.format != "text" and self.explain is None:
            raise UsageError(f"--format {self.format}: it is how --explain PLAN prints a plan; omit it")
        if self.host:
            raise UsageError("--host: crash points exist in arenas only; omit it")
        if not 0 <= self.within < float("inf"):
            raise UsageError(f"--within {self.within:g}: give seconds, or 0 for no limit")
        if self.phase and self.phase not in PHASES:
            raise UsageError(f"--phase {self.phase!r}: one of {', '.join(PHASES)}")
        self.slice()
        if self.plan is not None:
            if self.plan.kind not in STAGES:
                raise UsageError(f"--plan {self.plan}: no crash plan, STAGE:POINT…; `leakcheck leaks` tries such plans")
            usual = type(self)()
            for name in self.of_plan:
                if getattr(self, name) != getattr(usual, name):
                    option = name.replace("_", "-")
                    raise UsageError(f"--{option} --plan: a plan says all of that itself; give one of the two")

    @property
    def limit_s(self) -> float | None:
        """Seconds after which no further trial starts."""
        return self.within or None

    def slice(self) -> tuple[int, int]:
        """Return the number of this shard, from 0, and that of all."""
        first, _, count = self.shard.partition("/")
        if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
            raise UsageError(f"--shard {self.shard!r}: give I/N with I from 1 to N, such as 2/4")
        return int(first) - 1, int(count)
