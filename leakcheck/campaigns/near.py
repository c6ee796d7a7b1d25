"""Points that are like one that a plan names and no run has."""

import difflib
from typing import Any

from injectors import Plan
from leakcheck.campaigns.campaign import Made
from leakcheck.errors import TargetError
from leakcheck.trials.case import case_of, honest
from leakcheck.trials.crash_points import record
from leakcheck.trials.executor import Ui
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.runner import never
from leakcheck.trials.trial import Trial


def log_near_points(made: Made[Any, Trial], plan: Plan, ui: Ui) -> None:
    """Log which points there are in the stage of `plan`, and those most like the one that it names."""
    recovery, target = plan.kind == "recover", made.target
    wall = target.adapter.shortest_wall
    submission = SLEEPING if recovery else honest(case_of(plan, wall), wall)
    try:
        recorded = record(target, submission, 0, recovery=recovery, stop=never, every=True, watched=True).points
    except TargetError as error:
        ui.log(str(error))
        return
    names = [str(one.point) for one in recorded if one.point.stage == plan.kind]
    name = plan.argument.partition(":")[0]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0)
    there = f"such as {', '.join(near)}" if near else "none at all"
    ui.log(f"{plan.kind}:{name} is no point of {target.name}; {plan.kind} has {len(names)}, {there}")
