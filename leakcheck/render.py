"""A report as text: one line per leak, with what, who, since when, and a command to inspect it.

Names in reports are hostile input. The native core escapes them. This module never reads anything as markup, and
escapes again whatever could still control a terminal.
"""

import datetime
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.text import Text

from leakcheck._native import Snapshot
from leakcheck.printable import printable
from leakcheck.report import Leak, Report

VERDICT_STYLE = {"clean": "bold green", "leaked": "bold red", "unknown": "bold yellow"}
_SHOWN = 20
_MAKERS = 3
_FEW = 5
_Entry: TypeAlias = tuple[str, str, str]
_Part: TypeAlias = str | tuple[str, str]


def print_lines(texts: Iterable[Text], console: Console) -> None:
    """Print the lines of a report or a campaign; only the terminal wraps them."""
    for text in texts:
        console.print(text, soft_wrap=True, highlight=False)


def summary(report: Report) -> str:
    """Return `report` as plain text, for exceptions and test reports."""
    return "\n".join(text.plain for text in lines(report, leaks_shown=_SHOWN))


def leak_lines(leaks: Iterable[Leak]) -> dict[str, str]:
    """Return a plain line for each leak, by key; an empty one for a leak that another one's line includes."""
    found: dict[str, str] = {}
    for alike in _groups(leaks):
        found |= dict.fromkeys((leak.key for leak in alike[1:]), "") | {alike[0].key: _group_line(alike).plain.strip()}
    return found


def lines(report: Report, *, leaks_shown: int | None = None) -> Iterator[Text]:
    """Yield the report's lines, the verdict first; all leaks unless `leaks_shown` limits them."""
    yield _verdict_line(report)
    groups = _groups(report.leaks)
    yield from map(_group_line, groups[:leaks_shown])
    if leaks_shown is not None and (more := sum(map(len, groups[leaks_shown:]))):
        yield line("  ", f"… and {more} more")
    untied = [
        (leak.kind, _leak_line(leak).plain.strip().removeprefix(leak.kind).strip(), "") for leak in report.unattributed
    ]
    yield from _listing("unattributed ", untied, by=lambda entry: entry[0], style="yellow")
    passing = [(t.kind, t.label, f"gone after {t.gone_after_ms:.0f} ms") for t in report.transient]
    yield from _listing("transient ", passing, by=lambda entry: entry[0])
    accepted = [(a.kind, a.label, f"reason: {a.reason}") for a in report.allowed]
    yield from _listing("allowed ", accepted, by=lambda entry: (entry[0], entry[2]))
    # During a run, many resources of others vanish; those are not listed.
    if report.command is None and not (report.settle and report.settle.looks):
        gone = [(v.kind, v.label, "only in the earlier snapshot") for v in report.vanished]
        yield from _listing("vanished ", gone, by=lambda entry: entry[0])
    for rule in report.unused_rules:
        yield line("  ", ("unused rule ", "yellow"), f"{rule.kind}  reason: {rule.reason}")
    for kind, gap in report.gaps.items():
        yield line("  ", ("not fully seen ", "yellow"), f"{kind}: {gap.level}, {gap.reason or 'no reason given'}")
    if report.others:
        yield _others_line(report)
    if report.unreadable:
        processes = count(len(report.unreadable), "process", "processes")
        yield line("  ", ("unreadable ", "dim"), f"{processes} of others, running before the run")


def _others_line(report: Report) -> Text:
    """Show which other processes made something, since they may have done so for the command."""
    shown = [
        f"{other.pid} ({other.comm or 'ended'}): " + ", ".join(f"{n} {kind}" for kind, n in other.made.items())
        for other in report.others[:_MAKERS]
    ]
    more = len(report.others) - len(shown)
    makers = "; ".join(shown) + (f"; and {more} more" if more else "")
    alive = next((other.pid for other in report.others if other.comm), None)
    how = "compare two snapshots" if alive is None else f"guard it too (--scope tree:{alive}) or compare two snapshots"
    noise = f"{count(report.noise, 'difference')} not counted, made by others: {makers}"
    return line("  ", ("others ", "yellow"), noise, (f" · if one of them acted for the command: {how}", "dim"))


def _listing(word: str, entries: list[_Entry], by: Callable[[_Entry], Hashable], style: str = "dim") -> Iterator[Text]:
    """Yield one line per entry (kind, label, remark), the first few of each group; the report's JSON has them all."""
    groups: dict[Hashable, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(by(entry), []).append(entry)
    for group in groups.values():
        for kind, label, remark in group[:_FEW]:
            yield line("  ", (word, style), f"{kind}  {label}", ("  " + remark if remark else "", "dim"))
        if (more := len(group) - _FEW) > 0:
            yield line("  ", (word, style), f"{group[0][0]}  and {more} more: see --json")


def _verdict_line(report: Report) -> Text:
    parts: list[_Part] = ["leakcheck: ", (report.verdict, VERDICT_STYLE[report.verdict])]
    reclaimable = sum(leak.class_ == "reclaimable" for leak in report.leaks)
    if leaks := len(report.leaks) - reclaimable:
        parts.append(f", {count(leaks, 'leak')}")
    elif report.verdict == "unknown":
        gaps = ", ".join(report.gaps)
        parts.append(f", no leak seen, but not everything was observed{': ' + gaps if gaps else ''}")
    if reclaimable:
        # The target's own clean-up removed them, so they do not affect the verdict.
        parts.append(f", {reclaimable} reclaimable")
    if report.command is not None:
        parts.append(f" after {shlex.join(report.command.argv)} ({_ended(report.command.exit)})")
    if report.settle is not None and report.settle.looks and (report.leaks or report.transient):
        extended = ", extended" if report.settle.extended else ""
        looks = f"{count(report.settle.looks, 'look')}{extended}"
        parts.append((f", settled for {report.settle.ms:.0f} ms in {looks}", "dim"))
    return line(*parts)


def _groups(leaks: Iterable[Leak]) -> list[list[Leak]]:
    """Group cgroups that differ only in their hierarchy; every other leak is alone."""
    groups: dict[Hashable, list[Leak]] = {}
    for number, leak in enumerate(leaks):
        resource = leak.evidence.get("resource")
        same: Hashable = number
        if leak.kind == "cgroup" and isinstance(resource, dict) and {"path", "hierarchy"} <= resource.keys():
            same = str(resource["path"]), leak.class_, leak.who, leak.attribution
        groups.setdefault(same, []).append(leak)
    # What something else removes comes after what stays.
    return sorted(groups.values(), key=lambda alike: alike[0].class_ in ("reclaimable", "bounded"))


def _group_line(alike: Sequence[Leak]) -> Text:
    return _leak_line(alike[0], [leak.evidence["resource"]["hierarchy"] for leak in alike[1:]])


def _leak_line(leak: Leak, also_in: Sequence[str] = ()) -> Text:
    parts: list[_Part] = ["  ", (f"{leak.kind:<9} ", "bold"), (f"{leak.class_:<11} ", "red"), leak.label]
    if leak.made_at:
        parts += [(" · ", "dim"), "made at ", (leak.made_at, "bold")]
    if also_in:
        parts.append(f" (and {', '.join(map(str, also_in))})")
    if leak.who:
        parts += [(" · ", "dim"), leak.who]
    if leak.since:
        parts += [(" · ", "dim"), f"since {_local(leak.since)}"]
    if leak.attribution == "none":
        parts += [(" · ", "dim"), ("nothing ties it to the run", "yellow")]
    if leak.inspect:
        parts += [(" · inspect: ", "dim"), (leak.inspect, "cyan")]
    return line(*parts)


def line(*parts: _Part) -> Text:
    """Return one line of plain or styled parts, with everything unprintable escaped."""
    text = Text()
    for part in parts:
        content, style = (part, "") if isinstance(part, str) else part
        text.append(printable(content), style=style or None)
    return text


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "end not observed"
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit {exit_code}"


def _local(since: str) -> str:
    try:
        when = datetime.datetime.fromisoformat(since).astimezone()
    except (ValueError, OverflowError, OSError):
        return since
    today = datetime.datetime.now(when.tzinfo).date()
    return f"{when:%H:%M:%S}" if when.date() == today else f"{when:%Y-%m-%d %H:%M:%S}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Return the number with its noun, which is `one` with an s if it has no other plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def print_snapshot(snapshot: Snapshot, console: Console) -> None:
    """Print the counts and coverage of `snapshot`, one line per kind."""
    took = f"{snapshot.took_ns / 1e6:.1f} ms"
    seen = f"{count(len(snapshot), 'resource')} in scope {snapshot.scope}, observed in {took}"
    console.print(line(seen), soft_wrap=True)
    for kind in snapshot.kinds:
        level, reason = snapshot.coverage.get(kind, ("none", "not observed"))
        console.print(line(f"{kind:<10} {snapshot.count(kind):>7}  ", *coverage(level, reason)), soft_wrap=True)
    for name, number in snapshot.gauges.items():
        console.print(line(f"{name}: {number}"), soft_wrap=True)


def coverage(level: str, *reasons: str | None) -> list[_Part]:
    """Return a coverage level and its explanation, as parts of a line."""
    style = {"full": "green", "partial": "yellow"}.get(level, "red")
    return [(level, style), *(f"; {reason}" if n else f": {reason}" for n, reason in enumerate(filter(None, reasons)))]
