"""Criteria for a campaign's trials. Each is judged separately; the worst verdict of the unmet ones wins."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from leakcheck.campaigns.campaign import Check, Judged, Made
from leakcheck.campaigns.result import Criterion
from leakcheck.report import Verdict
from leakcheck.stats.bounds import upper_bound
from leakcheck.stats.degradation import LIMIT, Sample, changes
from leakcheck.stats.host_load import HostLoad
from leakcheck.trials.outcome import Outcome

__all__ = [
    "UNDECIDED",
    "UNSEEN",
    "VERDICTS",
    "at_most",
    "count",
    "leak_rate",
    "no_slower",
    "reached",
    "stated",
    "worst_verdict",
    "zero",
]

UNSEEN = "not fully seen"
"""Last words of the names of criteria about coverage: without them, nothing is known to be wrong."""
VERDICTS: tuple[Verdict, ...] = ("clean", "unknown", "leaked")
_NAMES: dict[Outcome, tuple[str, Verdict]] = {
    "leaked": ("trials that left something for good", "leaked"),
    "silent": ("runs or recoveries that reported success and left something", "leaked"),
    "wedged": ("recoveries or next submissions that failed", "leaked"),
    "split-brain": ("contests with two payloads in one box at once", "leaked"),
    "false-status": ("wrong statuses", "unknown"),
    "unknown": (f"trials {UNSEEN}", "unknown"),
    "not-reached": ("plans that did not fire", "unknown"),
}
UNDECIDED = frozenset(name for name, verdict in _NAMES.values() if verdict == "unknown")
"""The names of criteria which, unmet, leave it open whether something is left."""


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; clean if there is none."""
    return max(verdicts, key=VERDICTS.index, default="clean")


def count(made: Made[Any, Any], outcome: Outcome) -> int:
    """Return for how many trials `outcome` holds, whether or not it is their worst."""
    return sum(outcome in trial.outcomes for trial in made.trials)


def zero(outcome: Outcome) -> Check:
    """Require that `outcome` holds for no trial."""
    name, otherwise = _NAMES[outcome]
    return at_most(name, lambda made: count(made, outcome), 0, otherwise)


def reached() -> Check:
    """Require that every plan fired."""
    return zero("not-reached")


def at_most(name: str, measure: Callable[[Any], float], limit: float | None, otherwise: Verdict = "clean") -> Check:
    """Require that `measure` returns at most `limit` for everything made; `otherwise` is the verdict if not."""

    def check(made: Made[Any, Any]) -> Iterator[Judged]:
        measured = measure(made)
        passed = None if limit is None else measured <= limit
        yield Criterion(name=name, passed=passed, measured=measured, limit=limit), otherwise

    return check


def stated(name: str, measure: Callable[[Any], float]) -> Check:
    """Report what `measure` returns, without a requirement."""
    return at_most(name, measure, None)


def leak_rate(bad: Callable[[Any], int] = lambda made: count(made, "leaked")) -> Check:
    """Report the 95 % upper bound of the rate of leaking trials; `bad` returns how many leaked."""
    return stated("95 % upper bound of the leak rate", lambda made: round(upper_bound(bad(made), len(made.trials)), 6))


def no_slower(
    samples: Callable[[Any], list[Sample]],
    load: Callable[[Any], HostLoad],
    seed: int,
    limit: float = LIMIT,
    *,
    scheduled: bool = False,
) -> Check:
    """Require that neither throughput nor times of the `samples` get worse from the first third to the last.

    Late over early may be `limit`; `scheduled` is as in `leakcheck.stats.degradation.changes`.
    """

    def check(made: Made[Any, Any]) -> Iterator[Judged]:
        ordered = sorted(samples(made), key=lambda sample: sample.ended)
        for name, seen in changes(ordered, seed, limit, scheduled=scheduled).items():
            change = load(made).discount(seen, ordered)
            measured = {"late/early": change.ratio, "from": change.low, "to": change.high, "why": change.why or None}
            numbers = {key: value for key, value in measured.items() if value is not None}
            yield Criterion(name=f"slowdown, {name}", passed=change.passed, measured=numbers, limit=limit), "clean"

    return check
