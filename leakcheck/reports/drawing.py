"""Figures as HTML and SVG. Each has its numbers as text too, so that a reader needs no picture."""

from collections.abc import Iterator
from html import escape

from leakcheck.printable import printable
from leakcheck.reports.crash_map import crash_map
from leakcheck.reports.figures import Curves, Figure, Line, Lives, Map, Mix, Thing

__all__ = ["drawn"]


def drawn(figure: Figure, number: int, most: int) -> Iterator[str]:
    """Yield the lines of a figure; `number` is its own on the page, `most` how many bytes a map may have."""
    match figure:
        case Mix():
            yield from _mix(figure)
        case Map():
            yield from crash_map(figure, number, most)
        case Lives():
            yield from _lives(figure)
        case Curves():
            yield from _curves(figure)


def _text(text: str) -> str:
    return escape(printable(text))


def _mix(figure: Mix) -> Iterator[str]:
    """Yield a bar for each row, with its numbers as text."""
    yield f"<h4>{_text(figure.title)}</h4>"
    yield f"<table><thead><tr><th>{_text(figure.of)}<th>{_text(figure.shares)}<th>&nbsp;</tr></thead><tbody>"
    for name, shares in figure.rows:
        counts = ", ".join(f"{one.count:,} {_text(one.name)}" for one in shares) or "none"
        parts = "".join(f'<span class={one.tone} style="flex:{one.count}"></span>' for one in shares)
        yield f'<tr><td>{_text(name)}<td>{counts}<td style="width:40%"><div class=bar>{parts}</div></tr>'
    yield "</tbody></table>"


def _lives(figure: Lives) -> Iterator[str]:
    """Yield a row for each thing: a bar from the call that makes it to the one that removes it."""
    calls = max(figure.calls, 1)
    starts = [*(first for _, first in figure.phases), calls]
    borders = "".join(_vertical(first, "border") for first in starts[1:-1])
    yield f"<h4>{_text(figure.title)}</h4>"
    yield f"<p class=note>What a run without a fault makes, over its {figure.calls:,} calls, from left to right."
    yield "A red stroke is a kill or fault that leaves something; on a bar, it leaves that.</p><ul class=key>"
    yield "<li><b class=alive></b> released within the run<li><b class=stays></b> no call of the run releases it</ul>"
    yield "<table class=lives><thead><tr><th>What<td><div class=bands>"
    for (name, first), following in zip(figure.phases, starts[1:], strict=True):
        yield f'<span title="{_text(name)}" style="flex:{following - first}">{_text(name)}</span>'
    yield "</div></tr></thead><tbody>"
    if figure.cuts:
        marks = "".join(_vertical(at, "cut", said) for at, said in figure.cuts)
        yield f"<tr><th>{len(figure.cuts):,} points at which something is left<td>{_svg(calls, borders + marks)}</tr>"
    for thing in figure.things:
        yield _thing(thing, calls, borders)
    yield "</tbody></table>"
    if figure.left_out:
        yield f"<p class=note>{figure.left_out:,} more, which exist for a shorter time, are not shown.</p>"


def _thing(one: Thing, calls: int, borders: str) -> str:
    end = calls if one.end is None else one.end
    bar = (
        f'<rect class={"alive" if one.end is not None else "stays"} x="{one.begin}" y="3" '
        f'width="{max(end - one.begin, calls / 200):g}" height="4"><title>{_text(one.said)}</title></rect>'
    )
    cuts = "".join(_vertical(at, "cut") for at in one.cuts)
    left = f"; left by {len(one.cuts)} kinds of fault" if one.cuts else ""
    return (
        f"<tr><th><details><summary>{_text(one.kind)} <small>{_text(one.name)}</small></summary>"
        f"{_text(one.said)}{left}</details><td>{_svg(calls, borders + bar + cuts)}</tr>"
    )


def _svg(calls: int, inner: str) -> str:
    return f'<svg viewBox="0 0 {calls} 10" preserveAspectRatio="none" aria-hidden="true">{inner}</svg>'


def _vertical(at: int, kind: str, said: str = "") -> str:
    title = f"<title>{_text(said)}</title>" if said else ""
    return f'<line class={kind} x1="{at}" x2="{at}" y1="0" y2="10">{title}</line>'


def _curves(figure: Curves) -> Iterator[str]:
    """Yield a diagram, whose highest value is the top."""
    points = [point for line in figure.lines for point in line.points]
    if not points:
        return
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = max(max(y for _, y in points), 1e-9)
    yield f"<figure><figcaption>{_text(figure.title)}, {_text(figure.unit)}: "
    names = zip(figure.lines, ("first-name", "second-name"), strict=False)
    yield "; ".join(f"<span class={shown}>{_text(_said(line))}</span>" for line, shown in names)
    yield f"</figcaption><div class=plot><span>{_number(top)}</span>"
    yield '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
    for line, shown in zip(figure.lines, ("curve", '"curve second"'), strict=False):
        span = max(high - low, 1e-9)
        path = " ".join(f"{100 * (x - low) / span:.2f},{100 - 100 * y / top:.2f}" for x, y in line.points)
        yield f'<polyline class={shown} points="{path}"/>'
    yield "</svg><span class=low>0</span>"
    yield f"<div class=time><span>{_number(low)} s</span><span>{_number(high)} s</span></div></div></figure>"


def _said(line: Line) -> str:
    if not line.points:
        return f"{line.name}: none"
    values = [y for _, y in line.points]
    return f"{line.name} {_number(values[0])} at first, {_number(values[-1])} at last, {_number(max(values))} at most"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
