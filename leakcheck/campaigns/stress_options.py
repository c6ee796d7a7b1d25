"""What the campaign ``stress`` runs: its options, and the sequence of submissions."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated

from leakcheck.campaigns.campaign import Option, Options
from leakcheck.errors import UsageError
from leakcheck.submissions import DEFAULT_MIX, LANGUAGES, Mix, Spec, Submission, parse_specs
from leakcheck.targets import Target
from leakcheck.targets.compatibility import incompatibility, sample_for
from leakcheck.trials.shared_arena import compiled

# Submissions drawn per batch; each batch has its own seed.
_SAMPLED = 10_000


def _languages(text: str) -> list[str]:
    if not (names := [name for name in text.split(",") if name]):
        raise UsageError(f"--languages {text!r}: names no language; omit it for the default")
    return names


class StressOptions(Options, frozen=True, kw_only=True):
    """What to run; `specs` replace the mix, `observe` is whether residue is observed at all."""

    submissions: Annotated[
        int | None, Option("Number of submissions. Default: 1000, or as many as --duration allows.", "N")
    ] = None
    duration: Annotated[float | None, Option("Start no new submission after this many seconds.", "SECONDS")] = None
    concurrency: Annotated[int, Option("Submissions at a time, each in its own box.", "C")] = 4
    mix: Annotated[
        Mix | None,
        Option(f"Shares of OK, TLE, MLE, RE, OLE. Default: {DEFAULT_MIX}.", "STATUS=SHARE,…", parse=Mix.parse),
    ] = None
    languages: Annotated[
        Sequence[str], Option("Default: cpp, java, python, where found.", "LANGUAGE,…", parse=_languages)
    ] = ()
    hostile: Annotated[bool, Option("Add submissions that try to leave something behind.")] = False
    specs: Annotated[
        Sequence[Spec],
        Option(
            "Run these in rotation instead of a mix, as in a replay line.",
            "'SPEC …'",
            "--submission",
            parse=lambda texts: parse_specs(" ".join(texts)),
            repeated=True,
            was="--plan",
        ),
    ] = ()
    queue: Annotated[int, Option("Bound of the queue; 0: twice the concurrency.", "Q")] = 0
    observe: bool = True

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.submissions is not None and not 1 <= self.submissions <= 10_000_000:
            raise UsageError(f"--submissions {self.submissions}: give 1 to 10000000")
        if self.duration is not None and not 0 < self.duration <= 30 * 86400:
            raise UsageError(f"--duration {self.duration}: give seconds above 0, at most 30 days")
        if not 1 <= self.concurrency <= 1000:
            raise UsageError(f"--concurrency {self.concurrency}: give 1 to 1000")
        if not 0 <= self.queue <= 1_000_000:
            raise UsageError(f"--queue {self.queue}: give 1 to 1000000, or 0 for twice the concurrency")
        if self.specs and (self.languages or self.hostile or self.mix is not None):
            raise UsageError("--submission: cannot be combined with --mix, --languages or --hostile")
        if unknown := [name for name in self.languages if name not in LANGUAGES]:
            raise UsageError(f"--languages {unknown[0]!r}: one of {', '.join(LANGUAGES)}")

    @property
    def wanted(self) -> int | None:
        """The number of submissions; None if only the duration bounds it."""
        if self.submissions is not None or self.duration is not None:
            return self.submissions
        return len(self.specs) or 1000

    @property
    def limit_s(self) -> float | None:
        """Seconds after which no further submission starts."""
        return self.duration


def submissions(target: Target, options: StressOptions) -> Iterator[Submission]:
    """Return an endless sequence of submissions; their suites are compiled by then."""
    if options.specs:
        if why := next(filter(None, (incompatibility(target, spec) for spec in options.specs)), ""):
            raise UsageError(f"--submission: {why}")
        _compile_all(options.specs)
        return map(compiled, itertools.cycle(options.specs))
    reports, shares = target.adapter.reports, options.mix.shares if options.mix else {}
    if unable := [status for status, share in shares.items() if share and status not in reports]:
        rest = {status: share for status, share in shares.items() if share and status in reports}
        hint = f"give --mix {Mix(rest)}" if rest else f"it reports {', '.join(reports)}"
        raise UsageError(f"--mix {options.mix}: {target.name} cannot report {unable[0]}; {hint}")
    # Draw the first batch now: errors in the mix are reported before anything runs.
    first = _sampled(target, options, 0)
    _compile_all(first)
    more = (spec for number in itertools.count(1) for spec in _sampled(target, options, number))
    return map(compiled, itertools.chain(first, more))


def _compile_all(specs: Sequence[Spec]) -> None:
    """Compile each language's suite before the load starts; then the cache also exists and can be bound."""
    for language in sorted({spec.language for spec in specs}):
        LANGUAGES[language].bundle()


def _sampled(target: Target, options: StressOptions, number: int) -> list[Spec]:
    return sample_for(
        target,
        options.mix or DEFAULT_MIX.only(target.adapter.reports),
        list(options.languages) or None,
        min(options.wanted or _SAMPLED, _SAMPLED),
        options.seed + number,
        hostile=options.hostile,
    )
