"""A new campaign is one class, a new injector another: both made here, by the public protocols alone, and run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec
import pytest
import typer
from made import Calls, target
from typer.testing import CliRunner

import injectors
from injectors import Evidence, Plan, Trial, injector_for, register
from injectors.timed import ended
from leakcheck.campaigns import Leaks, LeaksOptions, run
from leakcheck.campaigns.campaign import Check, Option, TrialOptions
from leakcheck.campaigns.criteria import at_most, leak_rate, reached, zero
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.commands.campaign import command_of
from leakcheck.submissions import BUILTIN
from leakcheck.targets import Target
from leakcheck.trials.case import Case

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


class Waiter:
    """Waits for the end, unless the plan says never; marks the launch, and notes that it was asked after it."""

    kinds: ClassVar[tuple[str, ...]] = ("toy",)
    may_miss: ClassVar[bool] = False
    seen: ClassVar[list[str]] = []

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(plan)

    def arena_options(self) -> Mapping[str, Any]:
        return {"limits": {"pids.max": 500}}

    def launch_env(self) -> Mapping[str, str]:
        return {"TOY": self.plan.argument}

    def apply(self, trial: Trial) -> Evidence:
        if self.plan.argument == "never":
            return Evidence(fired=False)
        return Evidence(fired=ended(trial.supervisor, 20_000), when_ms=trial.elapsed_ms)

    def between(self, trial: Trial) -> None:
        del trial
        self.seen.append(self.plan.argument)


class ToyOptions(TrialOptions, frozen=True, kw_only=True):
    """A toy's."""

    how: Annotated[str, Option("How.", "HOW")] = "late"


class Toy(TrialCampaign[ToyOptions]):
    """A toy."""

    name = "toy"
    question = "Does anything stay?"
    options = ToyOptions

    def cases(self, target: Target, options: ToyOptions, facts: Any) -> Iterator[Case]:
        del target, facts
        return iter([Case(BUILTIN["ok"], Plan("toy", options.how))] * options.iterations)

    def criteria(self, options: ToyOptions) -> Sequence[Check]:
        del options
        return [zero("leaked"), reached(), leak_rate(), at_most("trials", lambda made: len(made.trials), 3)]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Waiter)
    Waiter.seen.clear()
    yield
    del injectors._known["toy"]


def test_a_campaign_runs_under_an_injector_of_its_own(tmp_path: Path) -> None:
    stored: list[Any] = []
    # The launch marks the arena by what the injector put into its environment; nothing takes it away.
    made = target(tmp_path, '[ -z "$TOY" ] || mktemp "/var/lib/$TOY-XXXXXX" >/dev/null; exec "$@"', recover="true")
    result = run(Toy(), made, ToyOptions(iterations=2, settle=0.1), recording=Calls(stored.append))
    assert (result.campaign, result.trials, result.endings) == ("toy", 2, {"toy": {result.findings[0].outcome: 2}})
    assert result.verdict == "leaked"
    assert [trial.fired for trial in stored] == [True, True]
    # Once in the trial, and once more to see whether it grows.
    assert Waiter.seen.count("late") >= 2
    (finding,) = result.findings
    assert "/var/lib/late-" in finding.leaks[0].labels[0]
    assert finding.replay.startswith(f"leakcheck toy --target {made.path} --plan toy:late --iterations 1")
    assert [criterion.passed for criterion in result.criteria] == [False, True, None, True, True]


def test_a_fault_that_did_not_happen_is_never_a_pass(tmp_path: Path) -> None:
    result = run(Toy(), target(tmp_path, 'exec "$@"'), ToyOptions(iterations=2, how="never", settle=0.1))
    assert (result.verdict, result.outcomes) == ("unknown", {"not-reached": 2})
    assert result.failed == ["plans that did not fire"]


def test_leaks_is_never_clean_with_a_plan_that_did_not_fire(tmp_path: Path) -> None:
    options = LeaksOptions(iterations=1, plan=Plan("toy", "never"), settle=0.1)
    result = run(Leaks(), target(tmp_path, 'exec "$@"'), options)
    assert (result.verdict, result.outcomes) == ("unknown", {"not-reached": 1})


def test_its_command_line_is_made_of_its_options(tmp_path: Path) -> None:
    app = typer.Typer()
    kinds = {"target": (str, "refbox"), "json": (bool, False), "output": (Annotated[Path | None, typer.Option()], None)}
    app.command()(command_of(Toy(), **kinds))
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in ("--how", "--iterations", "--plan", "--jobs", "--host", "--seed"))
    made = target(tmp_path, 'exec "$@"')
    ran = CliRunner().invoke(app, ["--target", str(made.path), "--iterations", "4", "--settle", "0.1"])
    # More than three trials.
    assert ran.exit_code == 1, ran.output


def test_an_injector_whose_plan_does_not_read_back_is_refused() -> None:
    class Other(Waiter):
        kinds = ("other-toy",)

        @classmethod
        def of(cls, plan: Plan) -> Self:
            return cls(msgspec.structs.replace(plan, argument="other"))

    register(Other)
    with pytest.raises(AssertionError, match="does not parse back"):
        injector_for(Plan("other-toy", "this"))
