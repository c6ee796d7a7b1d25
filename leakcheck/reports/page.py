"""A page of HTML that needs nothing else: no script, no network, light or dark as the reader's system is."""

from collections.abc import Iterator
from html import escape

from leakcheck.campaigns import Result
from leakcheck.printable import printable
from leakcheck.reports.rows import failures, rows, text_of
from leakcheck.trials.outcome import FAILING, OUTCOMES
from leakcheck.verify.result import PartResult, RequirementResult, Verification, Verifications

_STYLE = """
:root { color-scheme: light dark; --pass: #1a7f37; --fail: #c62828; --doubt: #9a6700; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --pass: #4ac26b; --fail: #ff6b60; --doubt: #d4a72c; } }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.pass { color: var(--pass); } .fail { color: var(--fail); font-weight: 600; }
.inconclusive { color: var(--doubt); } .not-applicable { opacity: .65; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: .3rem; font-size: .85rem; }
.bar { display: flex; height: 1rem; border-radius: .2rem; overflow: hidden; }
.bar span { min-width: 3px; }
.good { background: var(--pass); } .bad { background: var(--fail); } .open { background: var(--doubt); }
details { margin: 1rem 0; } summary { cursor: pointer; } summary h3 { display: inline; }
"""
# What may be loaded: nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_GOOD = ("clean", "bounded", "recovered")


def page(found: Verifications) -> str:
    """Return the results as one page of HTML; nothing in a name is read as markup."""
    title = "leakcheck verify " + ", ".join(one.target for one in found.targets)
    body = "\n".join(line for one in found.targets for line in _target(one))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{body}
</body>
</html>
"""


def _text(text: str) -> str:
    return escape(printable(text))


def _target(found: Verification) -> Iterator[str]:
    yield f"<h2>{_text(f'{found.target} {found.version}'.strip())}: {found.verdict}</h2>"
    state = "" if found.complete else ", not complete"
    yield f"<p>Profile {found.profile}, seed {found.seed}{state}.</p>"
    yield "<table><thead><tr><th>Requirement<th>Status<th class=number>Tried<th class=number>Seconds"
    yield "</tr></thead><tbody>"
    for requirement in found.requirements:
        results = [part.result for part in requirement.parts if part.result is not None]
        tried = sum(one.trials for one in results)
        took = sum(part.seconds for part in requirement.parts)
        yield (
            f"<tr><td>{requirement.id} {_text(requirement.title)}<td class={_class(requirement.status)}>"
            f"{requirement.status}<td class=number>{tried:,}<td class=number>{took:.0f}</tr>"
        )
    yield "</tbody></table>"
    for requirement in found.requirements:
        for part in requirement.parts:
            yield from _part(found, requirement, part)


def _part(found: Verification, requirement: RequirementResult, part: PartResult) -> Iterator[str]:
    opened = " open" if part.status in ("fail", "inconclusive") else ""
    yield f"<details{opened}><summary><h3>{_text(part.name_in(requirement.id))}</h3>"
    yield f" <span class={_class(part.status)}>{part.status}</span></summary>"
    yield "<table><thead><tr><th>Status<th class=number>Measured<th class=number>Limit<th>Criterion</tr></thead><tbody>"
    for row in rows(part):
        yield (
            f"<tr><td class={_class(row.status)}>{row.status}<td class=number>{_text(row.measured)}"
            f"<td class=number>{_text(row.limit)}<td>{_text(row.name)}</tr>"
        )
    yield "</tbody></table>"
    if part.result is not None:
        yield from _mix(part.result)
    for _, of, finding in failures(found):
        if of is part:
            yield f"<pre>{escape(text_of(finding))}</pre>"
    yield "</details>"


def _mix(result: Result) -> Iterator[str]:
    """Yield a bar of the outcomes for each phase or ending, each with its numbers as text."""
    if not any(result.endings.values()):
        return
    yield "<table><thead><tr><th>Phase or ending<th>Outcomes<th>&nbsp;</tr></thead><tbody>"
    for ending, outcomes in result.endings.items():
        ordered = sorted(outcomes.items(), key=lambda one: _rank(one[0]))
        counts = ", ".join(f"{count} {outcome}" for outcome, count in ordered) or "none"
        parts = "".join(f'<span class={_colour(outcome)} style="flex:{count}"></span>' for outcome, count in ordered)
        yield f'<tr><td>{_text(ending)}<td>{_text(counts)}<td style="width:40%"><div class=bar>{parts}</div></tr>'
    yield "</tbody></table>"


def _rank(outcome: str) -> int:
    known: tuple[str, ...] = OUTCOMES
    return known.index(outcome) if outcome in known else -1


def _colour(outcome: str) -> str:
    failing: tuple[str, ...] = FAILING
    return "bad" if outcome in failing else "good" if outcome in _GOOD else "open"


def _class(status: str) -> str:
    return status.replace(" ", "-")
