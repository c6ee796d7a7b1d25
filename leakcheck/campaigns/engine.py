"""Runs any campaign: preflight, trials, criteria, findings, result."""

import contextlib
import functools
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TypeVar

import msgspec

from leakcheck.campaigns.campaign import Campaign, Made, Options, Trial
from leakcheck.campaigns.criteria import worst_verdict
from leakcheck.campaigns.keeper import Keep, Keeper
from leakcheck.campaigns.machine import Machine
from leakcheck.campaigns.recording import Recording
from leakcheck.campaigns.result import Criterion, Residue, Result
from leakcheck.errors import LeakcheckError, StoppedError, TargetError
from leakcheck.report import Verdict
from leakcheck.targets import Target
from leakcheck.trials.case import Case
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
    recording: Recording | None = None,
    keep: Keep | None = None,
) -> Result:
    """Run `campaign` on the sandbox `target`, and return its result.

    `ui` receives the progress, `recording` each finished trial, and `keep` from time to time the result so far, which
    is not `complete`. What `recording` has of before is not tried again. Once `stop` returns true, no further trial
    starts, and the result covers the trials made.

    Raises:
        UsageError: an option is impossible, or is with this target.
        CompileError: a submission does not compile.
        StoppedError: `stop` returned true before the first trial.
        TargetError: the target cannot run here, or its isolation is off.
    """
    ui, recording = ui or Ui(), recording or Recording()
    options.check()
    if recording.result is not None:
        return recording.result
    target.check_ready()
    programs = target.identities()
    known = Machine(live=options.live, settings=recording.settings, changed=recording.changed)
    with contextlib.closing(known) as machine:
        recording.watch(machine)
        if gaps := probe(target, live=options.live, stop=stop):
            raise TargetError(f"{target.name}: isolation is off: {'; '.join(gaps)}")
        made = _begun(campaign, target, options, ui, stop, recording)
        executor = made.executor
        ui.expect(made.wanted)
        recording.begin(made.wanted, made.trials)
        made.record = functools.partial(_record, campaign, made, recording)
        version = target.version()
        keeper, began = Keeper(keep, ui.log), time.monotonic() - recording.took

        def so_far() -> Result:
            trials = made.trials if campaign.streams else [*made.trials]
            taken = msgspec.structs.replace(made, trials=trials, took=time.monotonic() - began)
            return judged(campaign, campaign.so_far(taken), version, None)

        def cases() -> Iterator[Case]:
            rest = campaign.rest(made, campaign.cases(target, options, made.facts))
            return itertools.takewhile(lambda _: not campaign.enough(made), rest)

        try:
            for trial in executor.run(cases):
                made.trials.append(trial)
                made.record(trial)
                try:
                    ui.made(trial, len(made.trials))
                    keeper.offer(so_far)
                except Exception as error:  # noqa: BLE001 - the caller's error; the trials made still count
                    executor.fail(error)
        except Exception as error:  # noqa: BLE001 - a crashed check is unknown, whatever the cause
            executor.fail(error)
        if not made.trials and (made.wanted != 0 or executor.failure):
            raise executor.failure or StoppedError(f"{target.name}: interrupted before the first {campaign.unit[:-1]}")
        made.took = max(executor.took, recording.took)
        keeper.offer(so_far, now=True)
        campaign.finish(made, ui)
        if replaced := sorted(dict(programs.items() ^ target.identities().items())):
            executor.fail(TargetError(f"{replaced[0]} was replaced during the campaign"))
        result = judged(campaign, made, version, machine, interrupted=stop(), failure=executor.failure)
        try:
            recording.end(made.trials, result, campaign.kept(made), made.took)
        except LeakcheckError as error:
            verdict = worst_verdict([result.verdict, "unknown"])
            result = msgspec.structs.replace(result, verdict=verdict, error=result.error or str(error), complete=False)
        return result


def _begun(
    campaign: Campaign[_Options, _Trial],
    target: Target,
    options: _Options,
    ui: Ui,
    stop: Stop,
    recording: Recording,
) -> Made[_Options, _Trial]:
    """Return what the campaign has before its first trial, or before the first one after it was cut off."""
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
    executor.before = recording.took
    if recording.kept:
        campaign.go_on(made, recording.kept)
    made.trials = campaign.still_valid(made, recording.trials)
    if recording.trials:
        made.wanted = campaign.wanted_in_all(made)
        ui.log(f"goes on after {len(made.trials)} {campaign.unit}")
    return made


def _record(
    campaign: Campaign[_Options, _Trial], made: Made[_Options, _Trial], recording: Recording, trial: _Trial
) -> None:
    try:
        recording.add(trial, lambda: campaign.kept(made))
    except Exception as error:  # noqa: BLE001 - the caller's error; the trials made still count
        made.executor.fail(error)


class Around(Protocol):
    """What a `Machine` found out of the whole campaign."""

    untied: list[Residue]
    gaps: dict[str, str]

    def judge(self) -> Iterator[tuple[Criterion, Verdict]]:
        """Yield its criteria; then the rest is known."""

    def report(self) -> msgspec.Raw:
        """Return the report of what was left on a live host; null if the trials did not run there."""


def judged(
    campaign: Campaign[_Options, _Trial],
    made: Made[_Options, _Trial],
    version: str,
    machine: Around | None,
    *,
    interrupted: bool = False,
    failure: BaseException | None = None,
) -> Result:
    """Return the result of everything made; without `machine` it is only the result so far."""
    found = [one for check in campaign.criteria(made.options) for one in check(made)]
    findings, details = campaign.findings(made), campaign.details(made)
    found += [] if machine is None else machine.judge()
    verdicts = [verdict for criterion, verdict in found if criterion.passed is False]
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
        criteria=[criterion if machine else _undecided(criterion) for criterion, _ in found],
        findings=findings,
        coverage=gaps,
        untied=[*details.pop("untied", []), *(machine.untied if machine else [])],
        report=machine.report() if machine else msgspec.Raw(b"null"),
        rate=round(len(made.trials) / made.took, 2) if made.trials else 0,
        interrupted=interrupted,
        error="" if failure is None else str(failure) or type(failure).__name__,
        complete=not (machine is None or interrupted or failure),
        **details,
    )


def _undecided(criterion: Criterion) -> Criterion:
    """Return a criterion of the result so far: what is met so far need not be met at the end."""
    return msgspec.structs.replace(criterion, passed=criterion.passed and None)
