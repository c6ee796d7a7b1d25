"""A campaign's result as text."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from leakcheck.campaigns import explained
from leakcheck.campaigns.result import LEAKS_OF, Criterion, Finding, Occurrence, Residue, Result
from leakcheck.render import VERDICT_STYLE, line
from leakcheck.trials.preflight import FIRST

_OUTCOME_STYLE = {
    "clean": "green",
    "recovered": "cyan",
    "bounded": "cyan",
    "unknown": "yellow",
    "false-status": "yellow",
}
_SHOWN = 12
_LABELS = 3
_ENDINGS = 4
_REPLAYS = 3


def lines(campaign: Result) -> Iterator[Text]:
    """Yield the lines of `campaign`, the verdict first."""
    of = "" if campaign.trials == campaign.wanted else f" of {campaign.wanted}"
    named = f"{campaign.target} ({campaign.version})" if campaign.version else campaign.target
    why = ", interrupted" if campaign.interrupted else ""
    made = f", {named}, {campaign.trials}{of} {campaign.unit}{why}, seed {campaign.seed}"
    yield line("leakcheck: ", (campaign.verdict, VERDICT_STYLE[campaign.verdict]), made)
    if campaign.failed and campaign.unit != "trials":
        yield line("  ", ("failed    ", "bold red"), "; ".join(campaign.failed))
    width = max([8, *map(len, campaign.endings)])
    for ending, outcomes in campaign.endings.items():
        parts: list[str | tuple[str, str]] = [f"  {ending:<{width}} "]
        for number, (outcome, count) in enumerate(sorted(outcomes.items())):
            parts += [", " if number else "", (f"{count} {outcome}", _OUTCOME_STYLE.get(outcome, "red"))]
        yield line(*parts, "" if outcomes else ("no point was visited", "dim"))
    for finding in campaign.findings[:_SHOWN]:
        yield from finding_lines(finding)
    if (more := len(campaign.findings) - _SHOWN) > 0:
        yield line(f"  … and {more} more findings: see --json")
    for left in campaign.first_run:
        what = f"{left.count} {left.kind} {left.class_}: {'; '.join(labels(left)[:_LABELS])}"
        yield line("  ", ("first run ", "cyan"), what)
    for left in campaign.untied:
        yield line("  ", ("untied    ", "dim"), f"{left.count} {left.kind}: {left.labels[0]}; of unknown origin")
    for criterion in shortened(campaign.criteria):
        yield _criterion(criterion)
    for note in campaign.points.get("notes", []):
        yield line("  ", ("not traced ", "yellow"), note)
    for kind, reason in campaign.coverage.items():
        yield line("  ", ("not fully seen ", "yellow"), f"{kind}: {reason}")
    if campaign.error:
        yield line("  ", ("stopped ", "yellow"), campaign.error)
    yield from _times(campaign)


def _times(campaign: Result) -> Iterator[Text]:
    settle = ", ".join(f"{name} {value:g}" for name, value in campaign.settle_ms.items())
    if settle:
        yield line(("  settle ms  ", "dim"), settle)
    timing = ", ".join(f"{name} {value:.1f}" for name, value in campaign.timing_ms.items())
    yield line(("  timing ms (median)  ", "dim"), timing)
    for status, times in campaign.latency_ms.items():
        yield line(("  time ms    ", "dim"), f"{status}: {', '.join(f'{name} {ms:g}' for name, ms in times.items())}")
    for stall in campaign.stalls:
        yield line("  ", ("stalled   ", "bold red"), stall.partition("\n")[0], "; the stacks are in --json")
    bare = f"; {campaign.bare_rate:g}/s unverified" if campaign.bare_rate else ""
    length = f"; a run takes {campaign.run_ms:.1f} ms" if campaign.run_ms else ""
    rate = f"{campaign.rate:g} verified {campaign.unit}/s{bare}{length}"
    yield line(("  rate  ", "dim"), rate)


def _criterion(criterion: Criterion) -> Text:
    limit = "" if criterion.limit is None else f", limit {criterion.limit}"
    word = {True: ("pass", "green"), False: ("fail", "red"), None: ("    ", "")}[criterion.passed]
    return line("  ", word, f"  {criterion.name}: {measured(criterion)}{limit}")


def measured(criterion: Criterion) -> str:
    """Return what was measured, as text."""
    value = criterion.measured
    if not isinstance(value, dict):
        return str(value)
    numbers = [f"{name} {number:g}" for name, number in value.items() if name != "why"]
    return "; ".join(part for part in (", ".join(numbers), value.get("why", "")) if part)


def shortened(criteria: Sequence[Criterion]) -> Iterator[Criterion]:
    """Yield the criteria; those of all kinds without a leak share one line."""
    none = [one for one in criteria if one.name.startswith(LEAKS_OF) and one.passed]
    if none:
        name = f"leaks of {', '.join(one.name.removeprefix(LEAKS_OF) for one in none)}"
        yield Criterion(name=name, passed=True, measured=0, limit=0)
    yield from (one for one in criteria if one not in none)


def finding_lines(finding: Finding) -> Iterator[Text]:
    """Yield what was left, in which endings and how often, examples, and how to reproduce it, the surest way first."""
    what = ", ".join(f"{left.count} {left.kind} {_class(left)}" for left in finding.leaks) or "nothing left"
    style = _OUTCOME_STYLE.get(finding.outcome, "red")
    yield line("  ", (f"{finding.outcome:<12} ", style), f"{_endings(finding)}{what}")
    # Recovered residue gets a short line only.
    for left in finding.leaks if finding.outcome != "recovered" else ():
        for label in labels(left, finding)[:_LABELS]:
            yield line(f"            {label}")
    if finding.detail:
        yield line(("            ", "dim"), finding.detail)
    for told in explained.short(finding.explanation) if finding.explanation is not None else ():
        yield line(("            why: ", "dim"), told)
    yield line(("            replay: ", "dim"), (finding.replay, "cyan"))
    if finding.chance:
        yield line(("            ", "dim"), (finding.chance, "yellow"))
    for one in finding.endings[1:_REPLAYS]:
        yield line((f"            or, {one.ending}: ", "dim"), (one.replay, "cyan"))


def _endings(finding: Finding) -> str:
    if not finding.endings:
        return "" if finding.ending in ("stress", FIRST) else f"{finding.ending}, {finding.trials} trials: "

    def seen(one: Occurrence) -> str:
        other = "" if one.outcome == finding.outcome else f" {one.outcome}"
        return f"{one.ending} {one.trials} of {one.tried}{other}"

    shown = [seen(one) for one in finding.endings[:_ENDINGS]]
    more = [f"{len(finding.endings) - _ENDINGS} more"] if len(finding.endings) > _ENDINGS else []
    return f"{', '.join([*shown, *more])}: "


def labels(left: Residue, finding: Finding | None = None) -> list[str]:
    """Return its labels, with the endings that left it if others have the `finding` too.

    Those of a cgroup of one path in several hierarchies are one.
    """
    groups: dict[str, list[tuple[str, set[str]]]] = {}
    for number, label in enumerate(left.labels):
        place = label.split(" ", 2)[-1] if left.kind == "cgroup" else label
        endings = set(left.examples[number].endings) if left.examples else set()
        groups.setdefault(place, []).append((label, endings))
    shown = []
    for place, alike in groups.items():
        label = alike[0][0] if len(alike) == 1 else f"cgroup {place} (in {len(alike)} hierarchies)"
        endings = set[str]().union(*(endings for _, endings in alike))
        only = [one.ending for one in finding.endings if one.ending in endings] if finding else []
        some = finding is not None and 0 < len(only) < len(finding.endings) <= _ENDINGS
        shown.append(f"{label} · only {', '.join(only)}" if some else label)
    return shown


def _class(left: Residue) -> str:
    by = "by" if left.class_ == "reclaimable" else "until the"
    how = f"{left.class_} {by} {left.by}" if left.by else left.class_
    # The stage "run" is the usual one and is not shown.
    return how if left.stage in ("", "run") else f"{how}, of the {left.stage}"
