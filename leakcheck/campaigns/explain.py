"""Explains the findings of a campaign whose plans name points: one recorded trial each."""

import time
from typing import Any

from injectors import parse
from injectors.crash import STAGES
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.findings import Exact, trial_findings
from leakcheck.submissions import Submission
from leakcheck.trials.case import case_of
from leakcheck.trials.executor import Ui
from leakcheck.trials.explaining import Explainer
from leakcheck.trials.explanation import Explanation
from leakcheck.trials.outcome import FAILING
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

_MOST = 24
# Seconds after which no further finding is explained, unless the sweep itself may take longer.
_PATIENCE = 30


def explain(name: str, made: Made[Any, Trial], submission: Submission, ui: Ui, stop: Stop, *, seconds: float) -> None:
    """Explain the failing findings of a sweep as `explanations` does, and record what a run of `submission` makes."""
    explainer = Explainer(made.target, settle=made.options.settle, stop=stop)
    made.explanations = explanations(name, made, ui, stop, seconds=seconds, explainer=explainer)
    if made.options.plan is not None or stop():
        return
    try:
        made.spans = explainer.spans(submission)
    except Exception as error:  # noqa: BLE001 - a report without this drawing is one all the same
        ui.log(f"what a run makes was not recorded: {error or type(error).__name__}")


def explanations(
    name: str,
    made: Made[Any, Trial],
    ui: Ui,
    stop: Stop,
    exact: Exact | None = None,
    *,
    seconds: float = 0,
    explainer: Explainer | None = None,
) -> dict[str, Explanation]:
    """Return what explains each failing finding whose plan names a point, by its plan; the worst first.

    `name` is the campaign, `exact` has the points of timed kills. It takes so many `seconds` at most, or half a minute.
    """
    found = [one.plan for one in trial_findings(name, made, exact) if one.outcome in FAILING]
    plans = [plan for plan in dict.fromkeys(found) if plan.partition(":")[0] in STAGES]
    if not plans:
        return {}
    ui.log(f"explaining {min(len(plans), _MOST)} findings")
    explainer = explainer or Explainer(made.target, settle=made.options.settle, stop=stop)
    until = time.monotonic() + max(_PATIENCE, seconds)
    explained = {}
    for plan in plans[:_MOST]:
        if stop() or time.monotonic() > until:
            break
        try:
            explained[plan] = explainer.explain(case_of(parse(plan), made.target.adapter.shortest_wall))
        except Exception as error:  # noqa: BLE001 - a finding without an explanation is one all the same
            ui.log(f"{plan}: not explained: {error or type(error).__name__}")
    return explained
