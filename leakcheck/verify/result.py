"""What came of the plan as typed data; its JSON is the contract ``leakcheck.verify/1``."""

from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

from leakcheck.campaigns import Criterion, Result
from leakcheck.campaigns.criteria import UNDECIDED, UNSEEN
from leakcheck.errors import UsageError
from leakcheck.report import Status, Verdict
from leakcheck.verify.plan import Profile, Requirement, part_name

SCHEMA = "leakcheck.verify/1"
_PACE = ("slowdown", "submissions a minute")
_WORST: tuple[Status, ...] = ("not applicable", "pass", "inconclusive", "fail")


class PartResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one part: its result, or the `reason` why there is none. `seconds` is how long it took."""

    campaign: str
    status: Status
    label: str = ""
    reason: str = ""
    seconds: float = 0
    result: Result | None = None

    def name_in(self, requirement: str) -> str:
        """Return its name in a requirement of this id, such as ``R3 crash timeout``."""
        return part_name(requirement, self.campaign, self.label)


class RequirementResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one requirement; `status` is the worst of its parts."""

    id: str
    title: str
    status: Status
    parts: list[PartResult]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the plan for one target.

    `verdict` is ``leaked`` if a requirement failed, ``unknown`` if none did, but not all that apply were decided, or
    none applies. `complete` is false while it runs, and if it was interrupted.
    """

    target: str
    version: str
    profile: Profile
    seed: int
    requirements: list[RequirementResult]
    verdict: Verdict
    interrupted: bool = False
    complete: bool = True

    @property
    def results(self) -> Iterator[Result]:
        """The results of all campaigns that have one."""
        for requirement in self.requirements:
            yield from (part.result for part in requirement.parts if part.result is not None)


class _Head(msgspec.Struct):
    schema: str = ""


class Verifications(msgspec.Struct, frozen=True, kw_only=True):
    """The plan for each of several targets; its JSON is the contract ``leakcheck.verify/1``."""

    targets: list[Verification]
    schema: str = SCHEMA

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "verify") -> Self:
        """Decode it; raise a `UsageError` if it is none. `where` names it in the message."""
        try:
            schema = msgspec.json.decode(text, type=_Head).schema
            if schema != SCHEMA:
                raise UsageError(f"{where}: schema is {schema!r}, not {SCHEMA}")
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{where}: not a result of verify: {error}") from error

    def to_json(self) -> str:
        """Encode as one line of JSON."""
        return msgspec.json.encode(self).decode()


def without_pace(result: Result) -> Result:
    """Return the result without the criteria of pace: a few hundred submissions do not tell."""
    criteria = [one for one in result.criteria if not one.name.startswith(_PACE)]
    return msgspec.structs.replace(result, criteria=criteria)


def status_of(result: Result, *, strict: bool) -> Status:
    """Return whether a campaign's `result` passes; if `strict`, any unmet criterion but those about coverage fails."""
    statuses = [criterion_status(one, strict=strict) for one in result.criteria]
    if result.verdict == "leaked" or "fail" in statuses:
        return "fail"
    return (
        "inconclusive" if result.verdict == "unknown" or "inconclusive" in statuses or not result.complete else "pass"
    )


def criterion_status(criterion: Criterion, *, strict: bool) -> Status | None:
    """Return what came of one criterion; None if it only states a number."""
    if criterion.passed is None and criterion.limit is None:
        return None
    if criterion.passed:
        return "pass"
    doubtful = criterion.name.endswith(UNSEEN) or (not strict and criterion.name in UNDECIDED)
    return "inconclusive" if criterion.passed is None or doubtful else "fail"


def judged(requirement: Requirement, parts: list[PartResult]) -> RequirementResult:
    """Return the result of a requirement from those of its parts, at least one."""
    worst = max((part.status for part in parts), key=_WORST.index)
    return RequirementResult(id=requirement.id, title=requirement.title, status=worst, parts=parts)


def verdict_of(requirements: Sequence[RequirementResult]) -> Verdict:
    """Return the verdict of all `requirements`; what is not applicable decides nothing."""
    statuses = {one.status for one in requirements}
    if "fail" in statuses:
        return "leaked"
    return "clean" if "pass" in statuses and "inconclusive" not in statuses else "unknown"
