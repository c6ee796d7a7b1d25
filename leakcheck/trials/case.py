"""The case of one trial: a submission under a fault plan."""

import msgspec

from injectors import NORMAL, Plan
from leakcheck.submissions import Submission


class Case(msgspec.Struct, frozen=True):
    """One submission under one fault plan."""

    submission: Submission
    plan: Plan = NORMAL
