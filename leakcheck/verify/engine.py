"""Runs the plan on a target, one campaign after the other."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from leakcheck.campaigns import CAMPAIGNS, Campaign
from leakcheck.campaigns.campaign import Options
from leakcheck.campaigns.engine import run
from leakcheck.campaigns.recording import Recording
from leakcheck.conformance import tried
from leakcheck.errors import LeakcheckError, NotApplicableError, StoppedError, TargetError
from leakcheck.targets import Target
from leakcheck.trials.executor import Ui
from leakcheck.trials.runner import Stop, never
from leakcheck.verify.plan import Part, Profile, Requirement
from leakcheck.verify.recording import VerifyRecording
from leakcheck.verify.result import (
    PartResult,
    RequirementResult,
    Verification,
    judged,
    status_of,
    verdict_of,
    without_pace,
)

Record = Callable[[str, Campaign[Any, Any], Options], contextlib.AbstractContextManager[Recording]]
"""Returns the recording of the campaign of the part of this name, with these options."""
_UNRECORDED = VerifyRecording()


def verify(
    target: Target,
    profile: Profile,
    requirements: Sequence[Requirement],
    *,
    seed: int = 0,
    ui: Callable[[str, Part], Ui] = lambda _, __: Ui(),
    stop: Stop = never,
    keep: Callable[[Verification], None] = lambda _: None,
    record: Record = _UNRECORDED.record,
) -> Verification:
    """Run the `requirements` of the plan on `target`, one campaign after the other.

    `ui` returns what shows the progress of a part, which it gets with its name; `keep` receives what there is after
    each of them. `record` returns the recording of a campaign, which may have been made before. Once `stop` returns
    true, the rest is inconclusive.

    Raises:
        TargetError: the target cannot run here: a submission that is to succeed does not.
    """
    if (state := tried(target)).state != "ready":
        hint = f"; {state.hint}" if state.hint else ""
        raise TargetError(f"{target.name}: {state.state}: {state.reason}{hint}")
    version = target.version()
    found: list[RequirementResult] = []

    def so_far(*, complete: bool) -> Verification:
        rest = [
            judged(one, [_undone(part, "interrupted" if stop() else "not run yet") for part in one.parts])
            for one in requirements[len(found) :]
        ]
        done = [*found, *rest]
        return Verification(
            target=target.name,
            version=version,
            profile=profile,
            seed=seed,
            requirements=done,
            verdict=verdict_of(done),
            interrupted=stop(),
            complete=complete and not stop(),
        )

    for requirement in requirements:
        if stop():
            break
        parts = []
        for part in requirement.parts:
            name = part.name_in(requirement.id)
            again = functools.partial(record, name)
            parts.append(_run(target, part, seed, ui(name, part), stop, again, slow=profile != "quick"))
        found.append(judged(requirement, parts))
        keep(so_far(complete=False))
    return so_far(complete=True)


def _run(
    target: Target,
    part: Part,
    seed: int,
    ui: Ui,
    stop: Stop,
    record: Callable[[Campaign[Any, Any], Options], contextlib.AbstractContextManager[Recording]],
    *,
    slow: bool,
) -> PartResult:
    campaign, began = CAMPAIGNS[part.campaign], time.monotonic()
    if stop():
        return _undone(part, "interrupted")
    try:
        options = campaign.options(seed=seed, **part.options)
        with record(campaign, options) as recording:
            result = run(campaign, target, options, ui, stop=stop, recording=recording)
    except NotApplicableError as error:
        return PartResult(campaign=part.campaign, label=part.label, status="not applicable", reason=_reason(error))
    except StoppedError:
        return _undone(part, "interrupted")
    except LeakcheckError as error:
        return _undone(part, str(error), time.monotonic() - began)
    except Exception as error:  # noqa: BLE001 - a campaign that crashes decides nothing, whatever the cause
        return _undone(part, f"internal error, {type(error).__name__}: {error}", time.monotonic() - began)
    if not slow:
        result = without_pace(result)
    return PartResult(
        campaign=part.campaign,
        label=part.label,
        status=status_of(result, strict=campaign.strict),
        seconds=round(time.monotonic() - began, 1),
        result=result,
    )


def _undone(part: Part, reason: str, seconds: float = 0) -> PartResult:
    return PartResult(
        campaign=part.campaign, label=part.label, status="inconclusive", reason=reason, seconds=round(seconds, 1)
    )


def _reason(error: NotApplicableError) -> str:
    return str(error).removeprefix("not applicable: ")
