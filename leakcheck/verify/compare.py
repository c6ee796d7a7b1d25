"""Compares two results of `verify`, e.g. of two versions of a target; its JSON is ``leakcheck.verify-diff/1``."""

from collections.abc import Iterator

import msgspec
from rich.text import Text

from leakcheck.campaigns import compare
from leakcheck.campaigns.compare import Comparison
from leakcheck.campaigns.criteria import worst_verdict
from leakcheck.errors import UsageError
from leakcheck.render import line
from leakcheck.report import Status, Verdict
from leakcheck.verify.result import PartResult, Verification, Verifications

SCHEMA = "leakcheck.verify-diff/1"


class PartComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign of both: its status `before` and `after`, and how its findings changed, if both have a result.

    `verdict` is ``leaked`` if it is worse; ``unknown`` if the later one did not decide what the earlier one did.
    """

    name: str
    before: Status | None
    after: Status | None
    verdict: Verdict
    comparison: Comparison | None = None


class VerifyComparison(msgspec.Struct, frozen=True, kw_only=True):
    """All campaigns of two results; `verdict` is the worst."""

    parts: list[PartComparison]
    verdict: Verdict
    schema: str = SCHEMA


def compared(before: Verifications, after: Verifications) -> VerifyComparison:
    """Compare by target, requirement and campaign; one target each is compared whatever its name.

    Raises `UsageError` if no campaign is in both.
    """
    parts: list[PartComparison] = []
    for old, new in _pairs(before, after):
        olds, news = _parts(old), _parts(new)
        target = old.target if old.target == new.target else f"{old.target} and {new.target}"
        parts += [
            _compared(f"{target} {name}", olds.get(name), news.get(name)) for name in dict.fromkeys([*olds, *news])
        ]
    if not any(part.before is not None and part.after is not None for part in parts):
        raise UsageError("the two results of verify have no campaign in common: nothing can be compared")
    return VerifyComparison(parts=parts, verdict=worst_verdict(part.verdict for part in parts))


def lines(found: VerifyComparison) -> Iterator[Text]:
    """Yield the verdict, and for each campaign its statuses and what is new, more or gone."""
    yield line("leakcheck: ", compare.WORD[found.verdict], f": {len(found.parts)} campaigns")
    for part in found.parts:
        yield line("  ", (part.name, "bold"), f": {part.before or 'not run'}, then {part.after or 'not run'}")
        if part.comparison is not None:
            yield from (Text.assemble("    ", text) for text in compare.lines(part.comparison))


def _pairs(before: Verifications, after: Verifications) -> Iterator[tuple[Verification, Verification]]:
    if len(before.targets) == len(after.targets) == 1:
        yield before.targets[0], after.targets[0]
        return
    later = {one.target: one for one in after.targets}
    yield from ((one, later[one.target]) for one in before.targets if one.target in later)


def _parts(found: Verification) -> dict[str, PartResult]:
    return {part.name_in(one.id): part for one in found.requirements for part in one.parts}


def _compared(name: str, old: PartResult | None, new: PartResult | None) -> PartComparison:
    before, after = (None if one is None else one.status for one in (old, new))
    both = Comparison.of(old.result, new.result) if old and new and old.result and new.result else None
    verdict: Verdict = "clean" if both is None else both.verdict
    if after == "fail" and before not in ("fail", None):
        verdict = "leaked"
    elif after in ("inconclusive", None) and before in ("pass", "fail"):
        verdict = worst_verdict([verdict, "unknown"])
    return PartComparison(name=name, before=before, after=after, verdict=verdict, comparison=both)
