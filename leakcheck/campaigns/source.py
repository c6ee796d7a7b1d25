"""What a stress campaign runs: its options, and the submissions one after the other."""

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from leakcheck.errors import UsageError
from leakcheck.submissions import DEFAULT_MIX, LANGUAGES, Mix, Spec, Submission, build, cache_directory
from leakcheck.targets import Target
from leakcheck.targets.compatibility import incompatibility, sample_for
from leakcheck.trials.session import NEXT

__all__ = ["StressOptions", "compiled", "submissions", "warm_up"]

# Submissions drawn at a time, each time with a seed of its own.
_SAMPLED = 10_000


class StressOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    Args:
        submissions: how many; None is 1,000, or as many as `duration` allows, or each of `specs` once.
        duration: seconds after which no further one is begun.
        concurrency: how many at once, each in a box of its own.
        mix: share of each status; None is `DEFAULT_MIX` as far as the target can tell.
        languages: of the submissions; empty is C++, Java and Python, where found.
        hostile: whether the OK ones have those among them that try to leave something behind.
        specs: these submissions, one after the other, instead of a mix.
        queue: how many may wait; 0 is twice the concurrency.
        seed: of the draw.
        settle: seconds that asynchronous teardown may take.
        looks: whether what is left is looked at; without, only the statuses are checked.
    """

    submissions: int | None = None
    duration: float | None = None
    concurrency: int = 4
    mix: Mix | None = None
    languages: Sequence[str] = ()
    hostile: bool = False
    specs: Sequence[Spec] = ()
    queue: int = 0
    seed: int = 0
    settle: float = 0.25
    looks: bool = True

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        if self.submissions is not None and not 1 <= self.submissions <= 10_000_000:
            raise UsageError(f"--submissions {self.submissions}: give 1 to 10000000")
        if self.duration is not None and not 0 < self.duration <= 30 * 86400:
            raise UsageError(f"--duration {self.duration}: give seconds above 0, 30 days at most")
        if not 1 <= self.concurrency <= 1000:
            raise UsageError(f"--concurrency {self.concurrency}: give 1 to 1000")
        if not 0 <= self.queue <= 1_000_000:
            raise UsageError(f"--queue {self.queue}: give 1 to 1000000, or 0 for twice the concurrency")
        if not 0 <= self.settle <= 60:
            raise UsageError(f"--settle {self.settle}: give seconds from 0 to 60")
        if self.specs and (self.languages or self.hostile or self.mix is not None):
            raise UsageError("--submission: names the submissions itself; leave out --mix, --languages and --hostile")
        if unknown := [name for name in self.languages if name not in LANGUAGES]:
            raise UsageError(f"--languages {unknown[0]!r}: one of {', '.join(LANGUAGES)}")

    @property
    def wanted(self) -> int | None:
        """How many submissions there are to be; None where only the duration says."""
        if self.submissions is not None or self.duration is not None:
            return self.submissions
        return len(self.specs) or 1000


def submissions(target: Target, options: StressOptions) -> Iterator[Submission]:
    """Return the submissions, one after the other without end; their suites are compiled by then.

    Raises:
        UsageError: the target cannot tell a status or run a language that is asked for, or a toolchain is missing.
        CompileError: a suite does not compile.
    """
    if options.specs:
        if why := next(filter(None, (incompatibility(target, spec) for spec in options.specs)), ""):
            raise UsageError(f"--submission: {why}")
        _compile_all(options.specs)
        return map(compiled, itertools.cycle(options.specs))
    _check(target, options)
    # The first ones now: what cannot be drawn is said before anything is run.
    first = _sampled(target, options, 0)
    _compile_all(first)
    return map(compiled, itertools.chain(first, _endless(target, options)))


def _compile_all(specs: Sequence[Spec]) -> None:
    """Compile each language's suite before there is a load; then the cache is there to be bound, too."""
    for language in sorted({spec.language for spec in specs}):
        LANGUAGES[language].bundle()


def compiled(spec: Spec) -> Submission:
    """Return the submission; the whole cache is shown to it, so that a box needs the same directory for each."""
    return msgspec.structs.replace(build(spec), bundle=str(cache_directory()))


def warm_up() -> Submission:
    """Return what is run first in each box: it needs what all others need."""
    return msgspec.structs.replace(NEXT, bundle=str(cache_directory()))


def _check(target: Target, options: StressOptions) -> None:
    reports = target.adapter.reports
    shares = {} if options.mix is None else options.mix.shares
    if options.mix and (unable := [status for status, share in shares.items() if share and status not in reports]):
        rest = {status: share for status, share in shares.items() if share and status in reports}
        hint = f"give --mix {Mix(rest)}" if rest else f"it tells {', '.join(reports)}"
        raise UsageError(f"--mix {options.mix}: {target.name} cannot tell {unable[0]}; {hint}")


def _endless(target: Target, options: StressOptions) -> Iterator[Spec]:
    for number in itertools.count(1):
        yield from _sampled(target, options, number)


def _sampled(target: Target, options: StressOptions, number: int) -> list[Spec]:
    return sample_for(
        target,
        options.mix or DEFAULT_MIX.only(target.adapter.reports),
        list(options.languages) or None,
        min(options.wanted or _SAMPLED, _SAMPLED),
        options.seed + number,
        hostile=options.hostile,
    )
