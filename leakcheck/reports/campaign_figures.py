"""What the page draws of a campaign: outcomes, statuses, the crash map, life lines, curves over the run."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from injectors import Plan
from leakcheck.campaigns import Finding, Result, explained
from leakcheck.campaigns.visited import Visited, tried_of
from leakcheck.printable import printable
from leakcheck.reports.figures import Cell, Curves, Figure, Line, Lives, Map, Mix, Share, Thing, Tone
from leakcheck.stats.bounds import quantile
from leakcheck.trials.outcome import FAILING, OUTCOMES
from leakcheck.trials.record import Record
from leakcheck.trials.spans import Span, Spans

__all__ = ["figures_of"]

_GOOD = ("clean", "bounded", "recovered")
# Points of a line.
_STEPS = 60
_CUTS = 400


def figures_of(result: Result) -> list[Figure]:
    """Return what there is to draw of a campaign."""
    known = msgspec.convert(result.points.get("map", []), list[Visited])
    spans = msgspec.convert(result.points.get("lives"), Spans | None)
    figures = [*_outcomes(result), *_statuses(result)]
    if known:
        figures.append(_map(result, known))
    if spans is not None and spans.spans:
        figures.append(_lives(result, known, spans))
    return [*figures, *_curves(result.records)]


def _outcomes(result: Result) -> Iterator[Figure]:
    if any(result.endings.values()):
        rows = [(printable(ending), _shares(outcomes)) for ending, outcomes in result.endings.items()]
        yield Mix(title="Outcomes", of="Phase or ending", shares="Outcomes", rows=rows)


def _shares(outcomes: Mapping[str, int]) -> list[Share]:
    return [Share(one, outcomes[one], _tone(one)) for one in sorted(outcomes, key=_rank)]


def _statuses(result: Result) -> Iterator[Figure]:
    """Yield which statuses came for which expected one."""
    came: dict[str, Counter[str]] = defaultdict(Counter)
    for record in result.records:
        came[record.expect][record.status] += 1
    if came:
        rows = [
            (expect, [Share(printable(one), counts[one], "good" if one == expect else "bad") for one in sorted(counts)])
            for expect, counts in sorted(came.items())
        ]
        yield Mix(title="Statuses", of="Expected status", shares="Reported", rows=rows)


def _rank(outcome: str) -> int:
    known: tuple[str, ...] = OUTCOMES
    return known.index(outcome) if outcome in known else -1


def _tone(outcome: str) -> Tone:
    failing: tuple[str, ...] = FAILING
    return "bad" if outcome in failing else "good" if outcome in _GOOD else "open"


def _map(result: Result, known: Sequence[Visited]) -> Map:
    findings = {one.id: one for one in result.findings}
    replays = {one.plan: one.replay for finding in result.findings for one in finding.endings}
    phases: dict[str, list[Cell]] = {}
    for one in known:
        for when in one.outcome or ["before"]:
            cell = _cell(one, when, findings, replays) if one.outcome else _untried(one)
            phase = printable(one.after if when == "after" and one.after else one.phase)
            phases.setdefault(phase, []).append(cell)
    left_out = result.points.get("map_left_out", 0)
    title = "Crash map" if result.campaign == "crash" else "Map of calls"
    return Map(title=title, phases=[*phases.items()], left_out=left_out)


def _untried(one: Visited) -> Cell:
    return Cell(name=printable(one.point), outcome="", tone="open")


def _cell(one: Visited, when: str, findings: Mapping[str, Finding], replays: Mapping[str, str]) -> Cell:
    outcome = one.outcome[when]
    more = []
    for shown in one.shows:
        if tried_of(Plan.read(shown.plan))[1] != when:
            continue
        finding = findings.get(shown.finding)
        left = ", ".join(f"{left.kind} {left.class_}" for left in finding.leaks) if finding is not None else ""
        more.append(f"{shown.plan}: {shown.outcome}{f', {left}' if left else ''}")
        if finding is not None and shown.outcome in FAILING:
            more += [*explained.short(finding.explanation)] if finding.explanation is not None else []
            more.append(f"finding {finding.id}: {finding.detail}" if finding.detail else f"finding {finding.id}")
            more.append(f"replay: {replays.get(shown.plan) or _replay(finding, shown.plan)}")
    unsteady = " (one of two runs had it)" if one.unsteady else ""
    name = f"{when} {one.point}{unsteady}" if when != "fault" else f"{one.point}{unsteady}"
    return Cell(
        name=printable(name),
        outcome=outcome,
        tone=_tone(outcome),
        more=[printable(line[:600]) for line in more],
        joined=when == "after" and "before" in one.outcome and not one.after,
    )


def _replay(finding: Finding, plan: str) -> str:
    """Return the command that tries another plan of a finding: its own has that of one only."""
    words = shlex.split(finding.replay)
    if "--plan" in words[:-1]:
        words[words.index("--plan") + 1] = plan
    return shlex.join(words)


def _lives(result: Result, known: Sequence[Visited], spans: Spans) -> Lives:
    numbers = {name: number for number, name in enumerate(spans.calls)}
    made: dict[str, set[int]] = defaultdict(set)
    for finding in result.findings:
        if finding.explanation is not None and finding.outcome in FAILING:
            at = numbers.get(tried_of(Plan.read(finding.explanation.plan))[0])
            for life in finding.explanation.lives:
                if at is not None and life.created:
                    made[life.created].add(at)
    cuts = [
        (numbers[one.point], printable(f"{one.point}: {', '.join(failing)}"))
        for one in known
        if one.point in numbers and (failing := sorted({*one.outcome.values()} & {*FAILING}))
    ]
    return Lives(
        title="Life lines",
        calls=len(spans.calls),
        phases=[(printable(name), first) for name, first in spans.phases],
        things=[_thing(span, made[span.created]) for span in spans.spans],
        cuts=cuts[:_CUTS],
        left_out=spans.left_out,
    )


def _thing(span: Span, cuts: set[int]) -> Thing:
    end = f"released at {span.released}" if span.released else "released with the end of a process"
    if span.end is None:
        last = ": the kernel does, with its last user" if span.kind in ("mount", "namespace", "lock") else ""
        end = f"no call of the run releases it{last}"
    return Thing(
        kind=span.kind,
        name=printable(span.label),
        begin=span.begin,
        end=span.end,
        said=printable(f"created at {span.created}, {end}"),
        cuts=sorted(cut for cut in cuts if span.begin <= cut and (span.end is None or cut <= span.end)),
    )


def _curves(records: Sequence[Record]) -> Iterator[Figure]:
    """Yield how times, rate and residue developed over the run."""
    if len({record.ended_s for record in records}) < 2:
        return
    ordered = sorted(records, key=lambda record: record.ended_s)
    by_status: dict[str, list[Record]] = defaultdict(list)
    for record in ordered:
        by_status[record.expect].append(record)
    for status, alike in sorted(by_status.items()):
        lines = [
            _line("median", alike, lambda values: quantile(sorted(values), 0.5), lambda record: record.wall_ms),
            _line(
                "95th percentile", alike, lambda values: quantile(sorted(values), 0.95), lambda record: record.wall_ms
            ),
        ]
        yield Curves(title=f"Time of submissions that end {printable(status)}", unit="ms", lines=lines)
    width = _width(ordered)
    rate = _line("submissions", ordered, lambda values: len(values) / width, lambda _: 1.0)
    yield Curves(title="Submissions", unit="a second", lines=[rate])
    queue = _line("median", ordered, lambda values: quantile(sorted(values), 0.5), lambda record: record.queued_ms)
    yield Curves(title="Time in the queue", unit="ms", lines=[queue])
    total = 0
    points = [(ordered[0].ended_s, 0.0)]
    for record in ordered:
        if record.left:
            total += len(record.left)
            points.append((record.ended_s, float(total)))
    if total:
        points.append((ordered[-1].ended_s, float(total)))
        step = max(1, len(points) // (4 * _STEPS))
        line = Line(name="things left", points=[*points[:-1:step], points[-1]])
        yield Curves(title="What stays, in all", unit="things", lines=[line])


def _width(ordered: Sequence[Record]) -> float:
    return max((ordered[-1].ended_s - ordered[0].ended_s) / _STEPS, 1e-9)


def _line(
    name: str,
    ordered: Sequence[Record],
    summary: Callable[[Sequence[float]], float],
    value: Callable[[Record], float],
) -> Line:
    """Return the summary of the values of each of some equal times; a time without values has no point."""
    begin, width = ordered[0].ended_s, _width(ordered)
    buckets: dict[int, list[float]] = defaultdict(list)
    for record in ordered:
        buckets[min(_STEPS - 1, int((record.ended_s - begin) / width))].append(value(record))
    points = [(begin + (number + 0.5) * width, summary(buckets[number])) for number in sorted(buckets)]
    return Line(name=name, points=points)
