"""Runs any campaign: preflight, trials, criteria, findings, result."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from leakcheck.campaigns.campaign import Campaign, Made, Options, Trial
from leakcheck.campaigns.criteria import worst_verdict
from leakcheck.campaigns.keeper import Keep, Keeper
from leakcheck.campaigns.machine import Machine
from leakcheck.campaigns.result import Criterion, Result
from leakcheck.errors import StoppedError, TargetError
from leakcheck.targets import Target
from leakcheck.trials.executor import Ui
from leakcheck.trials.preflight import probe
from leakcheck.trials.runner import Stop, never

_Options = TypeVar("_Options", bound=Options)
_Trial = TypeVar("_Trial", bound=Trial)


def run(
    campaign: Campaign[_Options, _Trial],
    target: Target,
    options: _Options,
    ui: Ui | None = None,
    *,
    stop: Stop = never,
    store: Callable[[Any], None] = lambda _: None,
    keep: Keep | None = None,
) -> Result:
    """Run `campaign` on the sandbox `target`, and return its result.

    `ui` receives the progress, `store` each finished trial, and `keep` from time to time the result so far, which is
    not `complete`. Once `stop` returns true, no further trial starts, and the result covers the trials made.

    Raises:
        UsageError: an option is impossible, or is with this target.
        CompileError: a submission does not compile.
        StoppedError: `stop` returned true before the first trial.
        TargetError: the target cannot run here, or its isolation is off.
    """
    ui = ui or Ui()
    options.check()
    target.check_ready()
    programs = target.identities()
    with contextlib.closing(Machine(live=options.live)) as machine:
        if gaps := probe(target, live=options.live, stop=stop):
            raise TargetError(f"{target.name}: isolation is off: {'; '.join(gaps)}")
        facts = campaign.prepare(target, options, ui, stop)
        executor = campaign.executor(target, options, ui, stop)
        made: Made[_Options, _Trial] = Made(
            target=target,
            options=options,
            trials=[],
            facts=facts,
            executor=executor,
            wanted=campaign.wanted(options, facts),
        )
        ui.expect(made.wanted)
        version = target.version()
        keeper, began = Keeper(keep, ui.log), time.monotonic()

        def so_far() -> Result:
            taken = msgspec.structs.replace(made, trials=[*made.trials], took=time.monotonic() - began)
            return _judged(campaign, campaign.so_far(taken), version, None)

        try:
            for trial in executor.run(
                lambda: itertools.takewhile(lambda _: not campaign.enough(made), campaign.cases(target, options, facts))
            ):
                made.trials.append(trial)
                try:
                    store(trial)
                    ui.made(trial, len(made.trials))
                    keeper.offer(so_far)
                except Exception as error:  # noqa: BLE001 - the caller's error; the trials made still count
                    executor.fail(error)
        except Exception as error:  # noqa: BLE001 - a crashed check is unknown, whatever the cause
            executor.fail(error)
        if not made.trials:
            raise executor.failure or StoppedError(f"{target.name}: interrupted before the first {campaign.unit[:-1]}")
        made.took = executor.took
        keeper.offer(so_far, now=True)
        campaign.finish(made, ui)
        if replaced := sorted(dict(programs.items() ^ target.identities().items())):
            executor.fail(TargetError(f"{replaced[0]} was replaced during the campaign"))
        return _judged(campaign, made, version, machine, interrupted=stop(), failure=executor.failure)


def _judged(
    campaign: Campaign[_Options, _Trial],
    made: Made[_Options, _Trial],
    version: str,
    machine: Machine | None,
    *,
    interrupted: bool = False,
    failure: BaseException | None = None,
) -> Result:
    """Return the result of everything made; without `machine` it is only the result so far."""
    judged = [one for check in campaign.criteria(made.options) for one in check(made)]
    findings, details = campaign.findings(made), campaign.details(made)
    judged += [] if machine is None else machine.judge()
    verdicts = [verdict for criterion, verdict in judged if criterion.passed is False]
    gaps = made.coverage | ({} if machine is None else machine.gaps)
    if failure or gaps or machine is None:
        verdicts.append("unknown")
    wanted = made.wanted or len(made.trials)
    interrupted = interrupted and (made.wanted is None or len(made.trials) < wanted)
    return Result(
        campaign=campaign.name,
        target=made.target.name,
        version=version,
        seed=made.options.seed,
        wanted=wanted,
        trials=len(made.trials),
        unit=campaign.unit,
        verdict=worst_verdict(verdicts),
        outcomes=dict(Counter(trial.outcome for trial in made.trials)),
        criteria=[criterion if machine else _undecided(criterion) for criterion, _ in judged],
        findings=findings,
        coverage=gaps,
        untied=[*details.pop("untied", []), *(machine.untied if machine else [])],
        report=machine.report() if machine else msgspec.Raw(b"null"),
        rate=round(len(made.trials) / made.took, 2),
        interrupted=interrupted,
        error="" if failure is None else str(failure) or type(failure).__name__,
        complete=not (machine is None or interrupted or failure),
        **details,
    )


def _undecided(criterion: Criterion) -> Criterion:
    """Return a criterion of the result so far: what is met so far need not be met at the end."""
    return msgspec.structs.replace(criterion, passed=criterion.passed and None)
