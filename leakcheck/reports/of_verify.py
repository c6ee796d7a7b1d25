"""The results of `leakcheck verify` as a report."""

from leakcheck.printable import printable
from leakcheck.reports.of_campaign import part_of, place_of
from leakcheck.reports.rows import Group, Part, Report, Row, Subject
from leakcheck.verify.result import PartResult, RequirementResult, Verification, Verifications

__all__ = ["of_verify"]


def of_verify(found: Verifications) -> Report:
    """Return the report of the plan: a group is a requirement, a part of it a campaign."""
    return Report(command="leakcheck verify", subjects=[_subject(one) for one in found.targets])


def _subject(found: Verification) -> Subject:
    state = "" if found.complete else ", not complete"
    return Subject(
        name=found.target,
        version=found.version,
        verdict=found.verdict,
        about=f"Profile {found.profile}, seed {found.seed}{state}.",
        place=place_of(found.target),
        groups=[_group(one) for one in found.requirements],
    )


def _group(requirement: RequirementResult) -> Group:
    return Group(
        name=f"{requirement.id} {requirement.title}",
        status=requirement.status,
        tried=sum(part.result.trials for part in requirement.parts if part.result is not None),
        parts=[_part(requirement, part) for part in requirement.parts],
    )


def _part(requirement: RequirementResult, part: PartResult) -> Part:
    name = part.name_in(requirement.id)
    if part.result is not None:
        # Without it, the requirement is inconclusive, and the verdict unknown.
        return part_of(part.result, name, part.status, part.seconds, strict=True)
    row = Row(name=part.campaign, status=part.status, measured=printable(part.reason))
    return Part(name=name, rule=part.campaign, status=part.status, rows=[row], seconds=part.seconds)
