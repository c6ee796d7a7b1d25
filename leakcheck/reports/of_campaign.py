"""The result of a campaign as a part of a report."""

from collections.abc import Iterable, Iterator

import msgspec

from leakcheck.campaigns import Finding, Result, is_strict
from leakcheck.campaigns.render import finding_lines, measured
from leakcheck.printable import printable
from leakcheck.report import Status
from leakcheck.reports.campaign_figures import figures_of
from leakcheck.reports.figures import Figure
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject, cut, decided, lines_of
from leakcheck.trials.outcome import FAILING
from leakcheck.verify.result import criterion_status, status_of

__all__ = ["of_campaign", "part_of", "place_of"]

_EXAMPLES = 4
_EVIDENCE = 3_000


def of_campaign(result: Result, seconds: float = 0, more: Iterable[Figure] = ()) -> Report:
    """Return the report of one campaign, which took so many `seconds`, with `more` figures after its own."""
    status = status_of(result, strict=is_strict(result.campaign))
    part = part_of(result, result.campaign, status, seconds)
    part = msgspec.structs.replace(part, figures=[*part.figures, *more])
    of = "" if result.trials == result.wanted else f" of {result.wanted:,}"
    unfinished = f", {result.unfinished}" if result.unfinished else ""
    subject = Subject(
        name=result.target,
        version=result.version,
        verdict=result.verdict,
        about=f"{result.trials:,}{of} {result.unit}, seed {result.seed}{unfinished}.",
        place=place_of(result.target),
        groups=[Group(name=result.campaign, status=status, tried=result.trials, parts=[part])],
    )
    return Report(command=f"leakcheck {result.campaign}", subjects=[subject])


def place_of(target: str) -> str:
    """Return a path that stands for a target: a sandbox has no line of code."""
    return f"sandboxes/{target}"


def part_of(result: Result, name: str, status: Status, seconds: float, *, strict: bool = False) -> Part:
    """Return the part of a report for a campaign's result; if `strict`, all that is not decided counts."""
    return Part(
        name=name,
        rule=result.campaign,
        status=status,
        seconds=seconds,
        rows=decided(_rows(result, strict=strict), status, printable(result.unfinished) or result.verdict),
        failures=[_failure(one) for one in result.findings if one.outcome in FAILING],
        figures=figures_of(result),
    )


def _rows(result: Result, *, strict: bool) -> Iterator[Row]:
    """Yield the criteria that pass or fail, and why the campaign decides less than it was to."""
    for one in result.criteria:
        status = criterion_status(one, strict=is_strict(result.campaign))
        if status is not None:
            limit = "" if one.limit is None else f"{one.limit:g}"
            yield Row(
                name=printable(one.name),
                status=status,
                measured=printable(measured(one)),
                limit=limit,
                # The verdict and the exit code do not count it either.
                minor=not strict and one.passed is None and result.complete and result.verdict == "clean",
            )
    gaps = "; ".join(f"{kind}: {reason}" for kind, reason in result.coverage.items())
    for name, why in (("everything was seen", gaps), ("it ran to its end", result.error)):
        if why:
            yield Row(name=name, status="inconclusive", measured=cut(printable(why)))


def _failure(finding: Finding) -> Failure:
    examples = [one for left in finding.leaks for one in left.examples][:_EXAMPLES]
    evidence = [
        cut(msgspec.json.format(msgspec.json.encode({one.label: one.evidence})).decode(), _EVIDENCE)
        for one in examples
        if one.evidence
    ]
    return Failure(
        id=finding.id,
        outcome=finding.outcome,
        text=lines_of([line.plain for line in finding_lines(finding)]),
        replay=printable(finding.replay),
        plan=finding.plan,
        trials=finding.trials,
        evidence="\n".join(printable(line) for one in evidence for line in one.splitlines()),
    )
