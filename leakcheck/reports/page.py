"""A page of HTML that needs nothing else: no script, no network, light or dark as the reader's system is."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from leakcheck.printable import printable
from leakcheck.reports.drawing import drawn
from leakcheck.reports.figures import Curves, Figure, Map
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject
from leakcheck.reports.style import STYLE

# What may be loaded: nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_ROWS = 1_000
# Bytes of all crash maps, and of all else that may be much.
_MAPS = 800_000
_REST = 1_000_000


def page(found: Report) -> str:
    """Return the results as one page of HTML, below 2 MB; nothing in a name is read as markup."""
    title = f"{found.command} {', '.join(one.name for one in found.subjects)}"
    room = _Room(found)
    body = "\n".join(line for one in found.subjects for line in _subject(one, room))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{body}
</body>
</html>
"""


def _text(text: str) -> str:
    return escape(printable(text))


def _subject(found: Subject, room: "_Room") -> Iterator[str]:
    yield f"<h2>{_text(found.title)}: {found.verdict}</h2>"
    if found.about:
        yield f"<p>{_text(found.about)}</p>"
    if len(found.groups) > 1:
        yield from _overview(found)
    for part in found.parts:
        yield from _part(part, room)


def _overview(found: Subject) -> Iterator[str]:
    yield "<table><thead><tr><th>Requirement<th>Status<th class=number>Tried<th class=number>Seconds"
    yield "</tr></thead><tbody>"
    yield from map(_requirement, found.groups)
    yield "</tbody></table>"


def _requirement(group: Group) -> str:
    return (
        f"<tr><td>{_text(group.name)}<td class={_class(group.status)}>{group.status}"
        f"<td class=number>{group.tried:,}<td class=number>{group.seconds:.0f}</tr>"
    )


def _part(part: Part, room: "_Room") -> Iterator[str]:
    opened = " open" if part.status in ("fail", "inconclusive") else ""
    yield f"<details{opened}><summary><h3>{_text(part.name)}</h3>"
    yield f" <span class={_class(part.status)}>{part.status}</span></summary>"
    yield "<table class=criteria><thead><tr><th>Status<th class=number>Measured<th class=number>Limit<th>Criterion"
    yield "</tr></thead><tbody>"
    room.enter()
    shown = room.fitting(map(_row, _shown(part.rows)))
    yield from shown
    yield "</tbody></table>"
    if more := len(part.rows) - len(shown):
        yield f"<p class=note>And {more:,} more, of which the JSON tells.</p>"
    curves = [one for one in part.figures if isinstance(one, Curves)]
    for figure in part.figures:
        if not isinstance(figure, Curves):
            yield from room.drawn(figure)
    if curves:
        yield "<h4>Over the run</h4><div class=curves>"
        for figure in curves:
            yield from room.drawn(figure)
        yield "</div>"
    if part.failures:
        yield "<h4>Findings</h4>"
    shown = room.fitting(map(_failure, part.failures))
    yield from shown
    if more := len(part.failures) - len(shown):
        yield f"<p class=note>And {more:,} more findings: see the JSON.</p>"
    yield "</details>"


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Return all rows if they are few, else those that do not pass."""
    return [*rows] if len(rows) <= _ROWS else [row for row in rows if row.status != "pass"]


def _row(row: Row) -> str:
    return (
        f"<tr><td class={_class(row.status)}>{row.status}<td class=number>{_text(row.measured)}"
        f'<td class="number limit">{_text(row.limit)}<td>{_text(row.name)}</tr>'
    )


def _failure(failure: Failure) -> str:
    evidence = f"<details><summary>Evidence</summary><pre>{_lines(failure.evidence)}</pre></details>"
    return f"<pre>{_lines(failure.text)}</pre>{evidence if failure.evidence else ''}"


def _lines(text: str) -> str:
    return "\n".join(map(_text, text.split("\n")))


class _Room:
    """How much of the page is left: a part may have half of it, and all maps have an equal share of their own."""

    def __init__(self, found: Report) -> None:
        figures = [one for subject in found.subjects for part in subject.parts for one in part.figures]
        self._map = _MAPS // max(1, sum(isinstance(one, Map) for one in figures))
        self._left, self._of_part, self._number = _REST, 0, 0

    def enter(self) -> None:
        """Begin a part."""
        self._of_part = self._left // 2

    def fitting(self, texts: Iterable[str]) -> list[str]:
        """Return the first of the texts, as many as there is room for."""
        fitting = []
        for text in texts:
            if len(text.encode()) > self._of_part:
                break
            self._take(text)
            fitting.append(text)
        return fitting

    def drawn(self, figure: Figure) -> list[str]:
        """Return a figure, or that there is no room for it."""
        self._number += 1
        lines = [*drawn(figure, self._number, self._map)]
        if isinstance(figure, Map):
            return lines
        return self.fitting(["\n".join(lines)]) or [f"<p class=note>{_text(figure.title)}: no room on this page.</p>"]

    def _take(self, text: str) -> None:
        size = len(text.encode())
        self._left -= size
        self._of_part -= size


def _class(status: str) -> str:
    return status.replace(" ", "-")
