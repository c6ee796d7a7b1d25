"""Markdown, as for the summary of a CI job: a table of the requirements, then the failures."""

from leakcheck.reports.rows import failures, rows, text_of
from leakcheck.verify.result import Verification, Verifications


def markdown(found: Verifications) -> str:
    """Return the results as Markdown; nothing in a name is read as markup."""
    return "\n".join(map(_target, found.targets))


def _target(found: Verification) -> str:
    version = f" {found.version}" if found.version else ""
    lines = [
        f"## leakcheck verify {_plain(found.target + version)}: {found.verdict}",
        "",
        "| requirement | status | criterion | measured | limit |",
        "|---|---|---|---|---|",
    ]
    for requirement in found.requirements:
        for part in requirement.parts:
            cells = [
                (part.name_in(requirement.id), row.status, _plain(row.name), _plain(row.measured), row.limit)
                for row in rows(part)
                if row.status != "pass"
            ]
            lines += [f"| {' | '.join(one)} |" for one in cells]
        if requirement.status == "pass":
            lines.append(f"| {requirement.id} {requirement.title} | pass | | | |")
    for requirement, part, finding in failures(found):
        # No line of the text begins with a fence: each is stripped, and a name has no line feed.
        fence = "`" * 4
        lines += [
            "",
            f"### {part.name_in(requirement.id)}: {finding.outcome}",
            "",
            fence,
            _fenced(text_of(finding)),
            fence,
        ]
    return "\n".join([*lines, ""])


def _fenced(text: str) -> str:
    return text.replace("````", "` ` ` `")


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, in a cell of a table."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in text)
    return " ".join(escaped.split())
