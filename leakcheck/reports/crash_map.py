"""The crash map: a cell for each instant of a run, in order, by phase, without a script.

The cells of a map are one group of radio buttons: a single stop of the Tab key, in which the arrow keys go from one
instant to the next. The text of a cell is its label. It is read to who listens, and shown under the pointer, at the
focus, and as long as the cell is chosen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from leakcheck.printable import printable
from leakcheck.reports.figures import Cell, Map

__all__ = ["crash_map"]

_LETTERS = {
    "bounded": "b",
    "recovered": "r",
    "unknown": "?",
    "not-reached": "n",
    "leaked": "L",
    "false-status": "F",
    "silent": "S",
    "wedged": "W",
    "split-brain": "X",
}


def crash_map(figure: Map, number: int, most: int) -> Iterator[str]:
    """Yield a map in at most about so many bytes: the failures first, then the others from the beginning."""
    name = f"m{number}"
    cells = [cell for _, some in figure.phases for cell in some]
    texts = _texts(cells, name, most)
    counts = Counter(cell.outcome for cell in cells)
    yield f"<section class=map><h4>{_text(figure.title)}</h4><ul class=key>"
    tones = {cell.outcome: cell.tone for cell in cells}
    for outcome in sorted(counts):
        shown = f"{tones[outcome]} {_kind(outcome)}" if outcome else "untried"
        letter = _LETTERS.get(outcome, "")
        yield f'<li><b class="{shown}">{letter}</b> {_text(outcome) or "not tried"}: {counts[outcome]:,}'
    yield "</ul><p class=note>Each cell is an instant of a run, in order: before a call, joined to it the one after it."
    yield "Point at a cell, or choose one: it says what it is. The arrow keys lead from one to the next.</p>"
    yield f"<div class=cells><label class=none><input type=radio name={name} checked>no cell is chosen</label></div>"
    done = 0
    for phase, some in figure.phases:
        inside = Counter(cell.outcome or "not tried" for cell in some)
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(inside.items()))
        yield f"<fieldset><legend>{_text(phase)}: {_text(said)}</legend><div class=cells>"
        yield from _in_order(some, texts[done : done + len(some)])
        yield "</div></fieldset>"
        done += len(some)
    if figure.left_out:
        yield f"<p class=note>{figure.left_out:,} more points are not in the result, nor here.</p>"
    yield "</section>"


def _texts(cells: Sequence[Cell], name: str, most: int) -> list[str]:
    """Return each cell as HTML, empty for those that there is no room for."""
    texts = ["" for _ in cells]
    left = most
    ordered = sorted(range(len(cells)), key=lambda number: (cells[number].tone != "bad", number))
    for number in ordered:
        for text in (_cell(cells[number], name, whole=True), _cell(cells[number], name, whole=False)):
            if (size := len(text.encode())) <= left and not texts[number]:
                texts[number] = text
                left -= size
    return texts


def _in_order(cells: Sequence[Cell], texts: Sequence[str]) -> Iterator[str]:
    missing: Counter[str] = Counter()
    for cell, text in zip(cells, texts, strict=True):
        if not text:
            missing[cell.outcome or "not tried"] += 1
            continue
        yield from _missing(missing)
        missing.clear()
        yield text
    yield from _missing(missing)


def _missing(missing: Counter[str]) -> Iterator[str]:
    if missing:
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(missing.items()))
        yield f"<small>… {_text(said)} not drawn …</small>"


def _cell(cell: Cell, name: str, *, whole: bool) -> str:
    shown = f"{cell.tone} {_kind(cell.outcome)}" if cell.outcome else "untried"
    shown += " after" if cell.joined else ""
    more = "".join(map(_more, cell.more)) if whole else ""
    said = f"{_text(cell.name)}: {_text(cell.outcome) or 'not tried'}{more}"
    letter = _LETTERS.get(cell.outcome, "")
    return f'<label class="{shown}"><input type=radio name={name}><span>{said}</span>{letter}</label>'


def _more(line: str) -> str:
    word, _, command = line.partition(": ")
    return f"<br>{word}: <code>{_text(command)}</code>" if word == "replay" else f"<br>{_text(line)}"


def _text(text: str) -> str:
    return escape(printable(text))


def _kind(outcome: str) -> str:
    """Return a class for an outcome, which is a word of ours."""
    return f"is-{outcome}" if outcome in _LETTERS or outcome == "clean" else ""
