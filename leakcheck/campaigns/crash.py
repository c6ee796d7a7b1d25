"""The campaign ``crash``: at which instant must a sandbox be killed for it to leave something behind?"""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from injectors import Plan
from injectors.crash import Sent, Victim, When, crash_plan
from leakcheck.campaigns.campaign import Option
from leakcheck.campaigns.sweep import Sweep
from leakcheck.campaigns.sweep_options import SweepOptions
from leakcheck.errors import UsageError
from leakcheck.targets import Target
from leakcheck.trials.crash_points import Points, Recorded
from leakcheck.trials.runner import Stop

Schedule = Literal["immediate", "quiesced", "both"]
Visited = Literal["changes", "all"]


class CrashOptions(SweepOptions, frozen=True, kw_only=True):
    """Which points to visit, and who is killed; a `plan` replaces them all."""

    kill: Annotated[
        Victim,
        Option("Who is killed: the command, the process at the point, all but the payload, all."),
    ] = "supervisor"
    signal: Annotated[Sent, Option("What they get.")] = "SIGKILL"
    schedule: Annotated[Schedule, Option("Kill at once, once all other processes block, or both.")] = "both"
    points: Annotated[Visited, Option("Calls that change something outside, or writes and messages too.")] = "changes"
    of_plan: ClassVar[tuple[str, ...]] = ("ending", "phase", "kill", "signal", "schedule", "points", "shard")

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.kill == "freeze" and self.signal != "SIGKILL":
            raise UsageError(f"--kill freeze --signal {self.signal}: stopped processes act on SIGKILL alone")


class Crash(Sweep[CrashOptions]):
    """Kills at every point of a run, and at every point of the recovery of a crashed run."""

    name = "crash"
    question = "At which instant must a target be killed for it to leave something behind?"
    options = CrashOptions

    def record(
        self, target: Target, options: CrashOptions, stop: Stop, *, every: bool = False, watched: bool = False
    ) -> Points:
        """Record the points that the options ask for."""
        return super().record(target, options, stop, every=every or options.points == "all", watched=watched)

    def select(self, options: CrashOptions, points: Sequence[Recorded]) -> Iterator[Plan]:
        """Yield a kill before and after each point, in each schedule."""
        schedules = {"immediate": [False], "quiesced": [True], "both": [False, True]}[options.schedule]
        for one in points:
            ending = "sleeping" if one.point.stage == "recover" else options.ending
            instants: list[tuple[When, str]] = [("before", one.phase), ("after", one.after)]
            for when, phase in instants:
                if phase and options.phase in ("", phase):
                    for quiesced in schedules:
                        yield crash_plan(
                            one.point,
                            when,
                            quiesced=quiesced,
                            notified=one.notified,
                            victim=options.kill,
                            ending=ending,
                            sent=options.signal,
                        )
