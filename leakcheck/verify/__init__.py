"""The reliability plan QA-REL-001 for one target: every requirement, by the campaigns that decide it.

`verify` runs what `plan_of` and `select` return.
"""

from leakcheck.report import Status
from leakcheck.verify.engine import verify
from leakcheck.verify.plan import Part, Profile, Requirement, plan_of, select
from leakcheck.verify.result import PartResult, RequirementResult, Verification, Verifications

__all__ = [
    "Part",
    "PartResult",
    "Profile",
    "Requirement",
    "RequirementResult",
    "Status",
    "Verification",
    "Verifications",
    "plan_of",
    "select",
    "verify",
]
