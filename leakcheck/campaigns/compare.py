"""Compares two results of a campaign, e.g. of two versions of a target; its JSON is ``leakcheck.campaign-diff/1``."""

from collections.abc import Iterator
from typing import Self

import msgspec
from rich.text import Text

from leakcheck.campaigns.render import finding_lines
from leakcheck.campaigns.result import Finding, Result
from leakcheck.render import count, line
from leakcheck.trials.outcome import OUTCOMES

SCHEMA = "leakcheck.campaign-diff/1"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Findings by whether both results have them; `warnings` say why they may differ without a change of the target.

    `before` and `after` name campaign, target, version and number of trials. Findings of `open` are those of the later
    result; `more` has, by id, what the earlier one did not have: kinds that it leaves, endings that show it, a worse
    outcome.
    """

    before: str
    after: str
    new: list[Finding]
    gone: list[Finding]
    open: list[Finding]
    more: dict[str, list[str]]
    warnings: list[str]
    schema: str = SCHEMA

    @classmethod
    def of(cls, before: Result, after: Result) -> Self:
        """Compare by the findings' ids."""
        old, new = ({one.id: one for one in result.findings} for result in (before, after))
        more = {id_: [*_more(old[id_], new[id_])] for id_ in new if id_ in old}
        return cls(
            before=_named(before),
            after=_named(after),
            new=[one for one in after.findings if one.id not in old],
            gone=[one for one in before.findings if one.id not in new],
            open=[one for one in after.findings if one.id in old],
            more={id_: words for id_, words in more.items() if words},
            warnings=[*_warnings(before, after)],
        )

    @property
    def worse(self) -> bool:
        """Whether the later result has something that the earlier one did not."""
        return bool(self.new or self.more)


def _more(old: Finding, new: Finding) -> Iterator[str]:
    yield from sorted({leak.kind for leak in new.leaks} - {leak.kind for leak in old.leaks})
    yield from (f"after {ending}" for ending in sorted(_endings(new) - _endings(old)))
    if OUTCOMES.index(new.outcome) > OUTCOMES.index(old.outcome):
        yield new.outcome


def _endings(finding: Finding) -> set[str]:
    """Return the endings that show it, whatever the signal of a kill was."""
    return {one.ending.partition(",")[0] for one in finding.endings}


def _named(result: Result) -> str:
    version = f" ({result.version})" if result.version else ""
    return f"{result.campaign} {result.target}{version}, {result.trials} {result.unit}"


def _warnings(before: Result, after: Result) -> Iterator[str]:
    if before.campaign != after.campaign:
        yield f"another campaign: {before.campaign}, then {after.campaign}; their findings have no id in common"
    if before.target != after.target:
        yield f"another target: {before.target}, then {after.target}"
    if after.trials < before.trials:
        fewer = f"{after.trials}, not {before.trials}"
        yield f"fewer {after.unit} than before ({fewer}): a finding may be gone by chance"
    if set(before.endings) - set(after.endings):
        missing = ", ".join(sorted(set(before.endings) - set(after.endings)))
        yield f"endings that the later campaign did not try: {missing}"
    for word, result in (("earlier", before), ("later", after)):
        if result.interrupted or result.error:
            yield f"the {word} campaign is incomplete: {result.error or 'interrupted'}"
        if result.coverage:
            yield f"the {word} campaign did not fully see {', '.join(result.coverage)}"


def lines(found: Comparison) -> Iterator[Text]:
    """Yield the lines of the comparison, what is new first."""
    counts = f"{count(len(found.new), 'new finding')}, {len(found.gone)} gone, {len(found.open)} still open"
    yield line("leakcheck: ", (counts, "bold red" if found.worse else "bold green"))
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
            yield line((f"{word} ", style), finding.id)
            if finding.id in found.more and word != "gone":
                yield line("  ", ("now also: ", "red"), ", ".join(found.more[finding.id]))
            yield from finding_lines(finding)
