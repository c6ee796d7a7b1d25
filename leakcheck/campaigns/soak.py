"""The campaign ``soak``: submissions at a steady rate for days; does anything stay, fail or get slower?"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, cast

from leakcheck.campaigns.campaign import Check, Made, Option
from leakcheck.campaigns.criteria import at_most, stated
from leakcheck.campaigns.recording import StoredTrials
from leakcheck.campaigns.stress import Stress
from leakcheck.campaigns.stress_options import StressOptions
from leakcheck.errors import UsageError
from leakcheck.submissions import Mix
from leakcheck.targets import Target
from leakcheck.trials.executor import Ui
from leakcheck.trials.record import Record
from leakcheck.trials.runner import Stop
from leakcheck.trials.shared import Shared

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DEGRADATION = 1.01
"""R14 of the requirements: less than 1 % slower."""
_DAY = 86400.0


def seconds_of(text: str) -> float:
    """Return the seconds that a text such as ``90s``, ``30m``, ``12h`` or ``7d`` means; raise `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"--duration {text!r}: give a time such as 90s, 30m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


class SoakOptions(StressOptions, frozen=True, kw_only=True):
    """How long, and how many submissions an hour; `speed_up` makes it shorter, and denser, by this factor."""

    submissions: int | None = None
    duration: Annotated[float, Option("How long: 30m, 12h … Default: 7d.", "TIME", parse=seconds_of)] = 7 * _DAY
    rate: Annotated[float, Option("Submissions an hour.", "N")] = 1000
    speed_up: Annotated[float, Option("N times as many an hour, for as much less time; the result says so.", "N")] = 1
    mix: Annotated[
        Mix | None,
        Option("Shares of OK, TLE, MLE, RE, OLE. Default: OK=70,TLE=20,MLE=5,RE=5.", "STATUS=SHARE,…", parse=Mix.parse),
    ] = None

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.submissions is not None:
            raise UsageError("--submissions: a soak has a rate and a duration; give --rate and --duration")
        if not 0 < self.rate <= 10_000_000:
            raise UsageError(f"--rate {self.rate:g}: give submissions an hour, above 0, at most 10000000")
        if not 1 <= self.speed_up <= 100_000:
            raise UsageError(f"--speed-up {self.speed_up:g}: give 1 to 100000")

    @property
    def wanted(self) -> int:
        """The number of submissions."""
        return max(1, math.ceil(self.rate * self.duration / 3600))

    @property
    def limit_s(self) -> float | None:
        """How long it takes if the target keeps pace, in seconds."""
        return self.duration / self.speed_up

    @property
    def interval(self) -> float:
        """Seconds from one submission to the next."""
        return 3600 / self.rate / self.speed_up


class Soak(Stress[SoakOptions]):
    """Runs submissions of a mix at a steady rate; the trials stay in the store, not in memory."""

    name = "soak"
    question = "Does a sandbox run for days without a leak, a wrong status or a slowdown?"
    options = SoakOptions
    streams = True

    def executor(self, target: Target, options: SoakOptions, ui: Ui, stop: Stop) -> Shared:
        """Return the executor, which starts them at their times."""
        return self.shared(target, options, ui, stop, duration=None, interval=options.interval)

    def still_valid(self, made: Made[SoakOptions, Record], trials: Sequence[Record]) -> list[Record]:
        """Drop the submissions of rounds that were not observed; return the rest as it is, in the store."""
        if not isinstance(trials, StoredTrials):
            return super().still_valid(made, trials)
        observed = made.facts.before.observed
        stale = {one.id for one in trials if made.options.observe and one.right and one.round not in observed}
        made.executor.done = {one.id for one in trials} - stale
        if stale:
            trials.drop(stale)
        # It does for the engine what a list does.
        return cast("list[Record]", trials)

    def criteria(self, options: SoakOptions) -> Sequence[Check]:
        """Return those of ``stress``, with the limits of a soak, and those about leakcheck itself."""
        return [
            *super().criteria(options),
            at_most("MiB that leakcheck itself grew", lambda made: made.executor.own.growth_mib, 16, "unknown"),
            at_most("descriptors that leakcheck itself gained", lambda made: made.executor.own.more_fds, 0, "unknown"),
            stated("seconds behind the schedule at most", lambda made: round(made.executor.schedule.behind, 1)),
            *([_compressed(options)] if options.speed_up > 1 else []),
        ]

    def slowest(self) -> float:
        """Return how much slower late may be than early."""
        return _DEGRADATION

    def paced(self) -> bool:
        """Return whether as many submissions a minute as possible are wanted."""
        return False


def _compressed(options: SoakOptions) -> Check:
    units = ((_DAY, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next(one for one in units if options.duration >= one[0] or one[0] == 1)
    name = f"times faster than in real time: this is no soak of {options.duration / size:.4g} {unit}"
    return stated(name, lambda _: options.speed_up)
