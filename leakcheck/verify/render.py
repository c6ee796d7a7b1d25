"""What came of the plan as text: one page for a target, one table for several."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from leakcheck.campaigns import CAMPAIGNS, Criterion, Finding
from leakcheck.campaigns.render import finding_lines, measured, shortened
from leakcheck.render import VERDICT_STYLE, line
from leakcheck.report import Status
from leakcheck.trials.outcome import FAILING
from leakcheck.verify.result import PartResult, RequirementResult, Verification, criterion_status

_STYLE: dict[Status, str] = {
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "not applicable": "dim",
}
_SHOWN = 6
_NAME = 58
_STATUS = max(map(len, _STYLE))


def page(found: Verification) -> Iterator[Text]:
    """Yield the page of a target: its criteria by requirement, then the findings, each with its replay line."""
    yield line("leakcheck: ", (found.verdict, VERDICT_STYLE[found.verdict]), f", {title(found)}, seed {found.seed}")
    for requirement in found.requirements:
        yield _head(requirement)
        for part in requirement.parts:
            yield from _part(part, named=len(requirement.parts) > 1)
    for requirement in found.requirements:
        for part in requirement.parts:
            if part.result is not None:
                yield from _findings(requirement, part.result.findings)
    yield line("  ", ("summary ", "bold"), _summary(found))


def title(found: Verification) -> str:
    """Return what was verified, and how much of it."""
    version = f" ({found.version})" if found.version else ""
    return f"verify {found.target}{version}, profile {found.profile}{', interrupted' if found.interrupted else ''}"


def comparison(all_found: Sequence[Verification]) -> Iterator[Text]:
    """Yield a table of the criteria, a column for each target, and which of them has which finding."""
    width = max(_STATUS, *(len(_column(one)) for one in all_found)) + 2
    yield line(" " * (_NAME + 6), *(f"{_column(one):<{width}}" for one in all_found))
    for rows in zip(*(one.requirements for one in all_found), strict=True):
        cells = [(f"{row.status:<{width}}", _STYLE[row.status]) for row in rows]
        yield line(f"  {rows[0].id:<3} {rows[0].title:<{_NAME}}", *cells)
        for name in dict.fromkeys(name for row in rows for name in _judged(row)):
            marks = [_judged(row).get(name) for row in rows]
            if not any(mark and mark[0] != "pass" for mark in marks):
                continue
            cells = [(f"{_mark(mark):<{width}}", _STYLE[mark[0]] if mark else "dim") for mark in marks]
            yield line(f"      {name:<{_NAME}}", *cells)
    owners: dict[str, tuple[Finding, list[str]]] = {}
    for one in all_found:
        for result in one.results:
            for finding in result.findings:
                if finding.outcome not in FAILING:
                    continue
                owners.setdefault(f"{result.campaign} {finding.id}", (finding, []))[1].append(_column(one))
    for finding, names in owners.values():
        yield line("  ", (f"{', '.join(dict.fromkeys(names))}: ", "bold"))
        yield from finding_lines(finding)


def _mark(mark: tuple[Status, str] | None) -> str:
    return "-" if mark is None else f"{mark[1]} {mark[0]}"


def _column(found: Verification) -> str:
    return f"{found.target} {found.version}".strip()


def _judged(requirement: RequirementResult) -> dict[str, tuple[Status, str]]:
    """Return status and number of each criterion that has a limit, by name."""
    many = len(requirement.parts) > 1
    return {
        f"{part.label}: {one.name}" if many else one.name: (status, measured(one))
        for part in requirement.parts
        for one, status in _criteria(part)
    }


def _criteria(part: PartResult) -> Iterator[tuple[Criterion, Status]]:
    if part.result is None:
        return
    for one in shortened(part.result.criteria):
        status = criterion_status(one, strict=CAMPAIGNS[part.campaign].strict)
        if status is not None:
            yield one, status


def _head(requirement: RequirementResult) -> Text:
    results = [part.result for part in requirement.parts if part.result is not None]
    tried = ", ".join(dict.fromkeys(one.unit for one in results))
    made, wanted = sum(one.trials for one in results), sum(one.wanted for one in results)
    of = f" of {wanted:,}" if made < wanted else ""
    count = f"{made:,}{of} {tried}, " if results else ""
    took = sum(part.seconds for part in requirement.parts)
    status = (f"{requirement.status:<{_STATUS}}", _STYLE[requirement.status])
    return line(f"  {requirement.id:<3} ", status, f"  {requirement.title}  ", (f"{count}{took:.0f} s", "dim"))


def _part(part: PartResult, *, named: bool) -> Iterator[Text]:
    what = f"{part.campaign} {part.label}" if named else part.campaign
    if part.reason:
        yield line("      ", (f"{part.status:<{_STATUS}}", _STYLE[part.status]), f"  {what}: {part.reason}")
    elif named:
        yield line("      ", (what, "bold"))
    for one, status in _criteria(part):
        style = _STYLE[status]
        limit = "" if one.limit is None else f"limit {one.limit:g}"
        number, why = (measured(one), "") if not isinstance(one.measured, dict) else ("", f": {measured(one)}")
        yield line("      ", (f"{status:<{_STATUS}}", style), f"{number:>8}  {limit:<13} {one.name}{why}")
    if part.result is not None:
        for kind, reason in part.result.coverage.items():
            yield line("      ", (f"{'not fully seen':<{_STATUS}}", "yellow"), f"  {kind}: {reason}")
        if part.result.error:
            yield line("      ", (f"{'stopped':<{_STATUS}}", "yellow"), f"  {part.result.error}")


def _findings(requirement: RequirementResult, findings: Sequence[Finding]) -> Iterator[Text]:
    """Yield those that are failures."""
    failing = [one for one in findings if one.outcome in FAILING]
    if failing:
        yield line("  ", (f"findings of {requirement.id} {requirement.title}", "bold"))
    for finding in failing[:_SHOWN]:
        yield from finding_lines(finding)
    if (more := len(failing) - _SHOWN) > 0:
        yield line(f"  … and {more} more: see --json")


def _summary(found: Verification) -> str:
    counts = {status: [one.id for one in found.requirements if one.status == status] for status in _STYLE}
    return "; ".join(f"{status}: {', '.join(ids)}" for status, ids in counts.items() if ids)
