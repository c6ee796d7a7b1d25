"""Mixes: the number of submissions of each status, and their choice."""

import math
import random
from collections.abc import Collection, Iterator, Sequence
from typing import get_args

import msgspec

from leakcheck.errors import UsageError
from leakcheck.submissions.behaviours import BEHAVIOURS, Behaviour
from leakcheck.submissions.languages import LANGUAGES, Language, found_languages
from leakcheck.submissions.limits import Status
from leakcheck.submissions.specs import Spec, spec

_MIB = 1 << 20
_SAMPLED: tuple[Status, ...] = tuple(one for one in get_args(Status) if one != "IE")
DEFAULT_LANGUAGES = ("cpp", "java", "python")
"""The languages that are sampled by default, if installed."""


class Mix(msgspec.Struct, frozen=True):
    """The share of each status. The numbers are weights; percent if they add up to 100.

    Raises:
        UsageError: a status is unknown, a share is negative or not a number, or all are zero.
    """

    shares: dict[Status, float]

    def __post_init__(self) -> None:
        for status, share in self.shares.items():
            if status not in _SAMPLED:
                raise UsageError(f"mix: unknown status {status!r}: one of {', '.join(_SAMPLED)}")
            if not math.isfinite(share) or not 0 <= share <= 1e6:
                raise UsageError(f"mix: {status}={share}: give a number from 0 to 1000000")
        if not sum(self.shares.values()) > 0:
            raise UsageError("mix: nothing has a share above 0; give, for example, OK=70,TLE=20,RE=10")

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Return the mix that `text`, such as ``OK=70,TLE=20,MLE=5,RE=5``, describes; raise `UsageError`."""
        shares: dict[Status, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            status = next((known for known in _SAMPLED if known == name and "=" in part), None)
            if status is None:
                raise UsageError(f"mix {text!r}: {part!r}: give STATUS=SHARE, STATUS one of {', '.join(_SAMPLED)}")
            if status in shares:
                raise UsageError(f"mix {text!r}: {status} is given twice")
            try:
                shares[status] = float(number)
            except ValueError as error:
                raise UsageError(f"mix {text!r}: {status}={number}: give a number") from error
        return cls(shares)

    def __str__(self) -> str:
        return ",".join(f"{name}={share:.15g}" for name, share in self.shares.items())

    def only(self, reports: Collection[Status]) -> "Mix":
        """Return the mix restricted to the statuses in `reports`; raise `UsageError` if nothing is left."""
        return Mix({status: share for status, share in self.shares.items() if status in reports})

    def counts(self, n: int) -> dict[Status, int]:
        """Return the number of submissions of each status among `n`: its exact share, rounded up or down."""
        total = sum(self.shares.values())
        exact = {status: share * n / total for status, share in self.shares.items()}
        counts = {status: math.floor(value) for status, value in exact.items()}
        # The remainder goes to the statuses that lost most by rounding down.
        order = sorted(exact, key=lambda status: counts[status] - exact[status])
        for status in order[: n - sum(counts.values())]:
            counts[status] += 1
        return counts


DEFAULT_MIX = Mix({"OK": 70, "TLE": 20, "MLE": 5, "RE": 5})
"""Roughly what a judge gets."""


def sample(
    mix: Mix,
    languages: Sequence[str] | None,
    n: int,
    seed: int,
    *,
    reports: Collection[Status] = ("OK", "TLE", "RE"),
    time_limits: Collection[str] = ("wall",),
    shortest_wall: float = 0.1,
    hostile: bool = False,
    without: Collection[str] = (),
) -> list[Spec]:
    """Return `n` submissions in a random order; the same arguments give the same ones.

    Limits are drawn so that a loaded machine changes no status: an OK submission has one minute, and a TLE submission
    has 0.2 to 1 s and needs ten minutes.

    Args:
        mix: the share of each status.
        languages: the languages, in rotation within each status; default: the installed ones of `DEFAULT_LANGUAGES`.
        n: the number of submissions.
        seed: random seed.
        reports: the statuses that the target can report.
        time_limits: the limits that end in TLE with the target: ``wall``, ``cpu`` or both.
        shortest_wall: the target's shortest wall limit, in seconds; from 1 on, limits are whole seconds.
        hostile: whether the OK ones include submissions that try to leave something behind.
        without: behaviours to exclude.

    Raises:
        UsageError: a status of the mix is not in `reports`, a language is unknown or has no matching behaviour, or no
            language is installed.
    """
    if n < 0:
        raise UsageError(f"sample {n} submissions: give 0 or more")
    if unable := [status for status, share in mix.shares.items() if share and status not in reports]:
        raise UsageError(f"mix {mix}: the target cannot report {unable[0]}; it reports {', '.join(sorted(reports))}")
    names = list(languages) if languages is not None else found_languages(DEFAULT_LANGUAGES.__contains__)
    if not names:
        usual = ", ".join(DEFAULT_LANGUAGES)
        raise UsageError(f"no language to sample: none of {usual} is installed, or none was given")
    if unknown := [name for name in names if name not in LANGUAGES]:
        raise UsageError(f"unknown language {unknown[0]!r}: one of {', '.join(LANGUAGES)}")
    generator = random.Random(seed)  # noqa: S311 - must be repeatable
    behaviours = [one for one in BEHAVIOURS.values() if one.fits(time_limits, without, hostile=hostile)]
    sampled: list[Spec] = []
    for status, count in mix.counts(n).items():
        fitting = [one for one in behaviours if one.expect == status]
        for language, behaviour in _turns(status, names, fitting, count, generator):
            sampled.append(_drawn(language, behaviour, generator, time_limits, shortest_wall))
    generator.shuffle(sampled)
    return sampled


def _turns(
    status: Status, names: Sequence[str], behaviours: Sequence[Behaviour], count: int, generator: random.Random
) -> Iterator[tuple[Language, Behaviour]]:
    """Yield `count` pairs: the languages in rotation, and each language's behaviours in rotation in a random order."""
    choices: list[tuple[Language, list[Behaviour]]] = []
    for name in dict.fromkeys(names):
        if fitting := [one for one in behaviours if name in one.languages]:
            generator.shuffle(fitting)
            choices.append((LANGUAGES[name], fitting))
    if count and not choices:
        raise UsageError(f"nothing that ends in {status} in {', '.join(names)}")
    first = generator.randrange(len(choices)) if choices else 0
    for number in range(count):
        language, fitting = choices[(first + number) % len(choices)]
        yield language, fitting[number // len(choices) % len(fitting)]


def _drawn(
    language: Language, behaviour: Behaviour, generator: random.Random, time_limits: Collection[str], shortest: float
) -> Spec:
    """Return the submission with drawn limits."""
    wide = behaviour.expect not in ("MLE", "OLE")
    memory = generator.randrange(128, 513, 16) if wide else generator.randrange(64, 129, 16)
    limits: dict[str, float] = {
        "wall": float(generator.randint(60, 90)),
        "cpu": float(generator.randint(10, 20)),
        "memory": max(language.least_memory, memory * _MIB),
        "processes": max(language.least_processes, generator.randint(32, 128)),
    }
    if behaviour.expect == "OLE":
        limits["output"] = generator.randint(1, 8) * _MIB
        limits["file_size"] = generator.randint(1, 8) * _MIB
    if behaviour.ends_by:
        name = generator.choice([name for name in behaviour.ends_by if name in time_limits])
        if shortest >= 1:
            limits[name] = float(math.ceil(shortest) + generator.randint(0, 1))
        else:
            limits[name] = round(generator.uniform(max(0.2, shortest), 1.0), 2)
    return spec(language.name, behaviour.name, **limits)
