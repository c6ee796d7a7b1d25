"""Compares two results of a campaign, e.g. of two versions of a target; its JSON is ``leakcheck.campaign-diff/1``."""

from collections.abc import Iterator
from typing import Self

import msgspec
from rich.text import Text

from leakcheck.campaigns.render import finding_lines
from leakcheck.campaigns.result import Finding, Occurrence, Residue, Result
from leakcheck.errors import UsageError
from leakcheck.render import count, line
from leakcheck.report import Verdict
from leakcheck.trials.outcome import FAILING, OUTCOMES
from leakcheck.trials.similarity import fixed

SCHEMA = "leakcheck.campaign-diff/1"
WORD: dict[Verdict, tuple[str, str]] = {
    "leaked": ("worse", "bold red"),
    "unknown": ("unknown, nothing is worse, but not everything can be compared", "bold yellow"),
    "clean": ("not worse", "bold green"),
}
"""What a verdict of a comparison means, and its style."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Findings by whether both results have them; `warnings` say why they may differ without a change of the target.

    `before` and `after` name campaign, target, version and number of trials. Findings of `open` are those of the later
    result; `more` has, by id, what the earlier one did not have: kinds that it leaves, endings that show it, a worse
    outcome. `excused` says, by id, why what is new or more does not make the later result worse. `verdict` is
    ``leaked`` if it is worse; ``unknown`` if it is not, but did not see or try what the earlier one did.
    """

    before: str
    after: str
    new: list[Finding]
    gone: list[Finding]
    open: list[Finding]
    more: dict[str, list[str]]
    warnings: list[str]
    excused: dict[str, str] = {}
    verdict: Verdict = "clean"
    schema: str = SCHEMA

    @classmethod
    def of(cls, before: Result, after: Result) -> Self:
        """Compare by the findings' ids; raise `UsageError` for two different campaigns."""
        if before.campaign != after.campaign:
            raise UsageError(f"results of {before.campaign} and of {after.campaign}: give two of the same campaign")
        old, new = ({one.id: one for one in result.findings} for result in (before, after))
        more = {id_: [*_more(old[id_], new[id_])] for id_ in new if id_ in old}
        more = {id_: words for id_, words in more.items() if words}
        excused = {one.id: _excuse(one, before) for one in after.findings if one.id not in old}
        excused |= {id_: _excuse_more(old[id_], new[id_], before) for id_ in more}
        doubts = [*_doubts(before, after)]
        leaks = [*_leaks(before, after)]
        worse = bool(leaks) or not all(excused.values())
        return cls(
            before=_named(before),
            after=_named(after),
            new=[one for one in after.findings if one.id not in old],
            gone=[one for one in before.findings if one.id not in new],
            open=[one for one in after.findings if one.id in old],
            more=more,
            warnings=[*leaks, *doubts, *_warnings(before, after)],
            excused={id_: why for id_, why in excused.items() if why},
            verdict="leaked" if worse else "unknown" if doubts else "clean",
        )


def _excuse(finding: Finding, before: Result) -> str:
    """Return why a new finding does not make a result worse; empty if it does."""
    if finding.outcome not in FAILING:
        return f"{finding.outcome} is no failure"
    # At other instants, timed kills leave other parts of the same.
    lasting = [left for left in finding.leaks if left.class_ not in ("reclaimable", "bounded")]
    if all(map(_by_chance, finding.endings)) and lasting and all(_left_before(left, before) for left in lasting):
        return "a timed kill; each part of it was left before"
    return ""


def _left_before(left: Residue, before: Result) -> bool:
    def same(other: Residue) -> bool:
        alike = (other.kind, other.stage, other.class_ == "damaged") == (
            left.kind,
            left.stage,
            left.class_ == "damaged",
        )
        return alike and not {*map(fixed, other.labels)}.isdisjoint(map(fixed, left.labels))

    return any(same(other) for one in before.findings if one.outcome in FAILING for other in one.leaks)


def _excuse_more(old: Finding, new: Finding, before: Result) -> str:
    """Return why what an open finding has more does not make a result worse; empty if it does."""
    if new.outcome not in FAILING:
        return f"{new.outcome} is no failure"
    if OUTCOMES.index(new.outcome) > OUTCOMES.index(old.outcome):
        return ""
    others = [one for one in new.endings if _ending(one.ending) not in _endings(old)]
    timed = {one.ending for one in new.endings if _by_chance(one)}
    kinds = [left for left in new.leaks if left.kind not in _kinds(old)]
    if any(not left.endings or not left.endings.keys() <= timed for left in kinds):
        return ""
    if any(not _by_chance(one) and one.ending.partition(":")[0] in before.endings for one in others):
        return ""
    if all(map(_by_chance, others)):
        return "a timed kill shows more or less of it by chance"
    return "the earlier campaign did not try this ending"


def _more(old: Finding, new: Finding) -> Iterator[str]:
    yield from sorted(_kinds(new) - _kinds(old))
    yield from (f"after {ending}" for ending in sorted(_endings(new) - _endings(old)))
    if OUTCOMES.index(new.outcome) > OUTCOMES.index(old.outcome):
        yield new.outcome


def _by_chance(one: Occurrence) -> bool:
    """Return whether a campaign sees it by chance only, whatever its replay line shows."""
    return bool(one.chance) or one.ending.startswith("forced")


def _kinds(finding: Finding) -> set[str]:
    return {left.kind for left in finding.leaks}


def _endings(finding: Finding) -> set[str]:
    return {_ending(one.ending) for one in finding.endings}


def _ending(text: str) -> str:
    """Return an ending, whatever the signal of a kill was."""
    return text.partition(",")[0]


def _named(result: Result) -> str:
    version = f" ({result.version})" if result.version else ""
    return f"{result.campaign} {result.target}{version}, {result.trials} {result.unit}"


def _doubts(before: Result, after: Result) -> Iterator[str]:
    """Yield why the later result may lack what is worse."""
    if after.unfinished:
        yield f"the later campaign is incomplete: {after.unfinished}"
    elif after.verdict == "unknown" != before.verdict and not after.coverage:
        yield f"the later campaign is unknown: {', '.join(after.failed)}"
    if after.coverage:
        yield f"the later campaign did not fully see {', '.join(after.coverage)}"
    tried, again = ({ending for ending, counts in result.endings.items() if counts} for result in (before, after))
    if missing := tried - again:
        yield f"endings that the later campaign did not try: {', '.join(sorted(missing))}"


def _leaks(before: Result, after: Result) -> Iterator[str]:
    """Yield why the later result is worse whatever its findings, e.g. if a setting of the machine changed."""
    if after.verdict == "leaked" != before.verdict:
        yield f"the later campaign is leaked, the earlier one was not: {', '.join(after.failed) or 'see its criteria'}"


def _warnings(before: Result, after: Result) -> Iterator[str]:
    if before.target != after.target:
        yield f"another target: {before.target}, then {after.target}"
    if after.trials < before.trials:
        fewer = f"{after.trials}, not {before.trials}"
        yield f"fewer {after.unit} than before ({fewer}): a finding may be gone by chance"
    if before.unfinished:
        yield f"the earlier campaign is incomplete: {before.unfinished}"
    if before.coverage:
        yield f"the earlier campaign did not fully see {', '.join(before.coverage)}"


def lines(found: Comparison) -> Iterator[Text]:
    """Yield the lines of the comparison, what is new first."""
    counts = f"{count(len(found.new), 'new finding')}, {len(found.gone)} gone, {len(found.open)} still open"
    yield line("leakcheck: ", WORD[found.verdict], f": {counts}")
    yield line("  before  ", found.before)
    yield line("  after   ", found.after)
    for warning in found.warnings:
        yield line("  ", ("warning ", "yellow"), warning)
    for word, style, findings in (
        ("new", "red", found.new),
        ("still open", "yellow", found.open),
        ("gone", "green", found.gone),
    ):
        for finding in findings:
            excuse = "" if word == "gone" else found.excused.get(finding.id, "")
            yield line((f"{word} ", "yellow" if excuse else style), finding.id)
            if finding.id in found.more and word != "gone":
                yield line("  ", ("now also: ", "red"), ", ".join(found.more[finding.id]))
            if excuse:
                yield line("  ", ("not worse: ", "dim"), excuse)
            yield from finding_lines(finding)
