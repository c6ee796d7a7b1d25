"""What the formats have in common: the criteria of each part, and its failures as text."""

from collections.abc import Iterator
from typing import NamedTuple

from leakcheck.campaigns import CAMPAIGNS, Finding
from leakcheck.campaigns.render import finding_lines, measured
from leakcheck.printable import printable
from leakcheck.trials.outcome import FAILING
from leakcheck.verify.result import PartResult, RequirementResult, Status, Verification, criterion_status


class Row(NamedTuple):
    """One criterion that has a limit, or why a part has none."""

    name: str
    status: Status
    measured: str
    limit: str
    """Empty if it has none."""


def rows(part: PartResult) -> Iterator[Row]:
    """Yield the criteria of a part that pass or fail."""
    if part.result is None:
        yield Row(part.campaign, part.status, printable(part.reason), "")
        return
    for one in part.result.criteria:
        status = criterion_status(one, strict=CAMPAIGNS[part.campaign].strict)
        if status is not None:
            yield Row(one.name, status, measured(one), "" if one.limit is None else f"{one.limit:g}")
    gaps = "; ".join(f"{kind}: {reason}" for kind, reason in part.result.coverage.items())
    for why in filter(None, (gaps, part.result.error)):
        yield Row("everything was seen" if why is gaps else "it ran to its end", "inconclusive", printable(why), "")


def failures(found: Verification) -> Iterator[tuple[RequirementResult, PartResult, Finding]]:
    """Yield the findings that are failures, with where each is from."""
    for requirement in found.requirements:
        for part in requirement.parts:
            if part.result is not None:
                yield from ((requirement, part, one) for one in part.result.findings if one.outcome in FAILING)


def text_of(finding: Finding) -> str:
    """Return a finding as plain text; nothing in it can control a terminal."""
    return "\n".join(printable(line.plain.strip()) for line in finding_lines(finding))
