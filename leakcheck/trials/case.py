"""The case of one trial: a submission under a fault plan."""

import msgspec

from injectors import NORMAL, Plan
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.trials.payload import SLEEPING


class Case(msgspec.Struct, frozen=True):
    """One submission under one fault plan."""

    submission: Submission
    plan: Plan = NORMAL


def case_of(plan: Plan, shortest_wall: float = 0.1) -> Case:
    """Return the submission to run under `plan`; for a timeout, its wall limit is `shortest_wall` seconds."""
    if plan.kind == "timeout" or "timeout" in plan.flags:
        return Case(msgspec.structs.replace(BUILTIN["timeout"], wall=shortest_wall), plan)
    if plan.kind == "crash" or "crash" in plan.flags:
        return Case(BUILTIN[f"crash_{plan.argument if plan.kind == 'crash' else 'signal'}"], plan)
    return Case(SLEEPING if "sleeping" in plan.flags else BUILTIN["ok"], plan)
