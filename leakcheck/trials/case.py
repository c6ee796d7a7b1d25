"""The case of one trial: a submission under a fault plan."""

import msgspec

from injectors import NORMAL, Plan
from injectors.crash import ENDINGS, STAGES
from injectors.exhaustion import RESOURCES
from injectors.syscalls import Syscalls
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.trials.contender_program import HOLDER
from leakcheck.trials.payload import COUNTING, SLEEPING

# Seconds that a payload runs during which something is damaged.
_ALIVE = 1.0


class Case(msgspec.Struct, frozen=True):
    """One submission under one fault plan, after `further` runs beside the warm-up run."""

    submission: Submission
    plan: Plan = NORMAL
    further: int = 0


def honest(case: Case, shortest_wall: float) -> Submission:
    """Return the submission of a run of `case` without its fault: one that only a kill ends has a short limit."""
    lasts = "sleeping" in case.plan.flags and case.plan.kind != "recover"
    return msgspec.structs.replace(case.submission, wall=shortest_wall) if lasts else case.submission


def _fails_calls(plan: Plan) -> bool:
    """Return whether calls fail in a run that ends by itself: then its output shows whether its payload ran."""
    if plan.kind not in STAGES or not {*ENDINGS}.isdisjoint(plan.flags):
        return False
    injector = Syscalls.of(plan)
    return bool(injector.faults) and injector.kill is None


def case_of(plan: Plan, shortest_wall: float = 0.1) -> Case:
    """Return the submission to run under `plan`; for a timeout, its wall limit is `shortest_wall` seconds."""
    if plan.kind == "lock":
        return Case(HOLDER, plan)
    if plan.kind == "timeout" or "timeout" in plan.flags:
        return Case(msgspec.structs.replace(BUILTIN["timeout"], wall=shortest_wall), plan)
    if plan.kind == "crash" or "crash" in plan.flags:
        return Case(BUILTIN[f"crash_{plan.argument if plan.kind == 'crash' else 'signal'}"], plan)
    if plan.kind in RESOURCES or _fails_calls(plan):
        return Case(COUNTING, plan)
    if "living" in plan.flags:
        return Case(msgspec.structs.replace(SLEEPING, wall=max(shortest_wall, _ALIVE)), plan)
    return Case(SLEEPING if "sleeping" in plan.flags else BUILTIN["ok"], plan)
