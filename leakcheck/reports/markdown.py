"""Markdown, as for the summary of a CI job: a table of the requirements, then the failures."""

from leakcheck.reports.rows import Report, Subject

_FAILURES = 60


def markdown(found: Report) -> str:
    """Return the results as Markdown; nothing in a name is read as markup."""
    return "\n".join(_subject(found.command, one) for one in found.subjects)


def _subject(command: str, found: Subject) -> str:
    lines = [
        f"## {command} {_plain(found.title)}: {found.verdict}",
        "",
        "| requirement | status | criterion | measured | limit |",
        "|---|---|---|---|---|",
    ]
    for group in found.groups:
        for part in group.parts:
            cells = [
                (_plain(part.name), row.status, _plain(row.name), _plain(row.measured), row.limit)
                for row in part.rows
                if row.status != "pass"
            ]
            lines += [f"| {' | '.join(one)} |" for one in cells]
        if group.status == "pass":
            lines.append(f"| {_plain(group.name)} | pass | | | |")
    failures = [*found.failures]
    for part, failure in failures[:_FAILURES]:
        # No line of the text begins with a fence: each is stripped, and a name has no line feed.
        fence = "`" * 4
        lines += ["", f"### {_plain(part.name)}: {failure.outcome}", "", fence, _fenced(failure.text), fence]
    if (more := len(failures) - _FAILURES) > 0:
        lines += ["", f"… and {more} more failures: see the JSON."]
    return "\n".join([*lines, ""])


def _fenced(text: str) -> str:
    return text.replace("````", "` ` ` `")


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, in a cell of a table."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in text)
    return " ".join(escaped.split())
