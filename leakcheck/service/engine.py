"""Runs scenarios on a service, each in an arena of its own, and judges what is beneath."""

import contextlib
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from leakcheck.campaigns.criteria import worst_verdict
from leakcheck.campaigns.findings import finding_id, residue
from leakcheck.campaigns.result import Criterion, Finding, Residue, Result
from leakcheck.errors import NativeError, StoppedError, TargetError, UsageError
from leakcheck.report import Leak, Verdict
from leakcheck.service import browser, faults, histories, jobs, openapi, races, redis, security, ssrf, uploads  # noqa: F401 - they register their scenarios
from leakcheck.service.contract import Contract
from leakcheck.service.scenario import SCENARIOS, Failed, NotApplicable, Profile, Scenario
from leakcheck.service.stage import Stage
from leakcheck.trials.executor import Ui
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.runner import Stop, never
from leakcheck.trials.similarity import fixed

__all__ = ["NAME", "ServiceOptions", "Shown", "run_service", "select"]

NAME = "service"
NOT_APPLICABLE = "not applicable: "
_SETTLE = 2.0


class ServiceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run: rows or their first parts (``S3``, ``S3.6``) to run, none for all; seed, profile.

    `settle` is the seconds that residue has to go away; `actions` is a history to replay in the scenario of histories.
    """

    only: Sequence[str] = ()
    seed: int = 0
    profile: Profile = "quick"
    settle: float = _SETTLE
    actions: Sequence[str] = ()


class Shown(msgspec.Struct, frozen=True):
    """What came of one scenario: for `Ui`, it has the `outcome`."""

    scenario: Scenario
    outcome: Outcome
    problems: list[str] = []
    leaks: list[Leak] = []
    gaps: dict[str, str] = {}
    measured: Any = None
    reason: str = ""
    seconds: float = 0
    history: str = ""


def select(only: Sequence[str], profile: Profile) -> list[Scenario]:
    """Return the scenarios to run, in the order of their rows; raise `UsageError` for one that does not exist."""
    for name in only:
        if not any(_is_of(row, name) for row in SCENARIOS):
            raise UsageError(f"--only {name}: no such scenario; one of {', '.join(sorted(SCENARIOS, key=_order))}")
    chosen = [one for row, one in SCENARIOS.items() if not only or any(_is_of(row, name) for name in only)]
    chosen = [one for one in chosen if only or profile == "full" or not one.slow]
    return sorted(chosen, key=lambda one: _order(one.row))


def _is_of(row: str, name: str) -> bool:
    return row == name or row.startswith(f"{name}.")


def _order(row: str) -> tuple[str, int]:
    group, _, number = row.partition(".")
    return group, int(number or 0)


def run_service(
    contract: Contract, path: Path, options: ServiceOptions, ui: Ui | None = None, *, stop: Stop = never
) -> Result:
    """Run the scenarios on the service of `contract`, in the file at `path`, and return the result.

    Raises:
        UsageError: no such scenario.
        StoppedError: `stop` returned true before the first result.
        TargetError: the service lacks something, or does not start.
    """
    ui = ui or Ui()
    chosen = select(options.only, options.profile)
    if missing := contract.missing(path):
        raise TargetError(f"{contract.name}: {', '.join(missing)}: not found; the contract needs it")
    ui.expect(len(chosen))
    made: list[Shown] = []
    began, error = time.monotonic(), ""
    for one in chosen:
        if stop():
            break
        ui.log(f"{one.row} {one.title.partition(':')[0]}")
        try:
            made.append(_tried(contract, path, one, options, stop))
        except StoppedError:
            break
        except (TargetError, NativeError) as failure:
            # A service that never started was never tested.
            if not made:
                raise
            error = str(failure)
            break
        ui.made(made[-1], len(made))
    if not made:
        raise StoppedError(f"{contract.name}: interrupted before the first scenario")
    return _result(contract, path, options, made, len(chosen), time.monotonic() - began, error, interrupted=stop())


def _tried(contract: Contract, path: Path, one: Scenario, options: ServiceOptions, stop: Stop) -> Shown:
    """Return what came of one scenario."""
    began = time.monotonic()
    problems: list[str] = []
    measured: Any = None
    leaks: list[Leak] = []
    gaps: dict[str, str] = {}
    stage = Stage(
        contract,
        path,
        seed=options.seed,
        profile=options.profile,
        settle=options.settle,
        size=one.size,
        stop=stop,
        actions=options.actions,
        prepare=one.prepare,
    )
    history = ""
    try:
        entered = stage.__enter__()
    except NotApplicable as why:
        return Shown(one, "clean", reason=f"{NOT_APPLICABLE}{why}", seconds=time.monotonic() - began)
    with contextlib.closing(entered):
        stage.begin()
        try:
            measured = one.run(stage)
        except NotApplicable as why:
            return Shown(one, "clean", reason=f"{NOT_APPLICABLE}{why}", seconds=time.monotonic() - began)
        except Failed as failed:
            problems.append(str(failed))
            measured, history = failed.evidence, failed.history
        except StoppedError:
            raise
        except TargetError as error:
            problems.append(f"the service did not come back: {error}")
        except Exception as error:  # noqa: BLE001 - a crashed check is unknown, never a pass
            gaps["check"] = f"it failed: {type(error).__name__}: {error}"
        stage.undo()
        wedged = _ended(stage, problems)
        if not problems:
            leaks, unseen = stage.residue()
            gaps |= unseen | stage.unseen
            problems += _seen_again(stage)
        problems += stage.problems()
        if not problems and not leaks:
            leaks, more, late = stage.residue_after_stop()
            gaps, problems = gaps | more, late
    outcome = _outcome(problems, leaks, gaps, wedged=wedged)
    took = time.monotonic() - began
    return Shown(one, outcome, problems, leaks, gaps, measured, seconds=took, history=history)


def _ended(stage: Stage, problems: list[str]) -> bool:
    """End all jobs; add to `problems` if one does not, and return whether that is so."""
    try:
        stage.tidy()
    except NotApplicable:
        return False
    except Failed as failed:
        problems.append(str(failed))
        return True
    return False


def _seen_again(stage: Stage) -> list[str]:
    try:
        stage.look_again()
    except Failed as failed:
        return [str(failed)]
    return []


def _outcome(problems: Sequence[str], leaks: Sequence[Leak], gaps: dict[str, str], *, wedged: bool) -> Outcome:
    if wedged:
        return "wedged"
    if problems:
        return "false-status"
    if leaks:
        return "leaked"
    return "unknown" if gaps else "clean"


def _result(
    contract: Contract,
    path: Path,
    options: ServiceOptions,
    made: Sequence[Shown],
    wanted: int,
    took: float,
    error: str,
    *,
    interrupted: bool,
) -> Result:
    applied = [one for one in made if not one.reason]
    gaps = {f"{one.scenario.row}, {kind}": why for one in applied for kind, why in one.gaps.items()}
    verdicts: list[Verdict] = ["leaked" for one in applied if one.leaks]
    verdicts += ["unknown" for one in applied if one.problems or one.gaps]
    if error or interrupted or len(made) < wanted or not applied:
        verdicts.append("unknown")
    return Result(
        campaign=NAME,
        target=contract.name,
        version="",
        seed=options.seed,
        wanted=wanted,
        trials=len(made),
        unit="scenarios",
        verdict=worst_verdict(verdicts),
        outcomes=dict(Counter(one.outcome for one in applied)),
        criteria=[_criterion(one) for one in made],
        findings=[_finding(path, options, one) for one in applied if one.problems or one.leaks],
        coverage=gaps,
        endings=_endings(made),
        timing_ms={one.scenario.row: round(one.seconds * 1000, 1) for one in made},
        rate=round(len(made) / took, 2) if took else 0,
        interrupted=interrupted and len(made) < wanted,
        error=error,
        complete=not error and len(made) == wanted,
    )


def _endings(made: Sequence[Shown]) -> dict[str, dict[str, int]]:
    """Return outcome counts by source document; what is not applicable is in none."""
    groups: dict[str, Counter[str]] = {}
    for one in made:
        counts = groups.setdefault(one.scenario.row.partition(".")[0], Counter())
        if not one.reason:
            counts[one.outcome] += 1
    return {name: dict(counts) for name, counts in groups.items() if counts}


def _criterion(one: Shown) -> Criterion:
    name = f"{one.scenario.row} {one.scenario.title}"
    if one.reason:
        return Criterion(name=name, passed=None, measured=one.reason, limit=None)
    left = "; ".join(leak.label for leak in one.leaks[:3])
    unseen = one.gaps.values() if one.outcome == "unknown" else ()
    why = "; ".join([*one.problems[:3], *([f"left {len(one.leaks)}: {left}"] if left else []), *unseen])
    measured = {key: value for key, value in (one.measured or {}).items() if value is not None and value != ""}
    if why:
        measured["why"] = why
    # What was not fully seen is no pass.
    passed = None if one.outcome == "unknown" else one.outcome == "clean"
    return Criterion(name=name, passed=passed, measured=measured or "as it must be", limit=None)


def _finding(path: Path, options: ServiceOptions, one: Shown) -> Finding:
    row = one.scenario.row
    words = ["leakcheck", NAME, "--contract", str(path.absolute()), "--only", row, "--seed", str(options.seed)]
    words += ["--profile", "full"] if options.profile == "full" else []
    words += ["--history", one.history] if one.history else []
    detail = "; ".join(one.problems)
    what = [fixed(problem) for problem in one.problems[:1]] or sorted({fixed(leak.label) for leak in one.leaks})
    return Finding(
        id=finding_id(NAME, row, *what),
        ending=row,
        outcome=one.outcome,
        leaks=_residue(one.leaks),
        trials=1,
        tried=1,
        replay=shlex.join(words),
        detail=detail,
        chance="a race: it need not show in every replay" if "race" in one.scenario.title else "",
    )


def _residue(leaks: Sequence[Leak]) -> list[Residue]:
    return residue([[Remnant.of(leak) for leak in leaks]])
