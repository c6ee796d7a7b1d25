"""What a campaign is: one question, asked of many trials.

A new campaign is a class like `leakcheck.campaigns.leaks.Leaks` and a line in `leakcheck.campaigns.CAMPAIGNS`: its
options, the cases that are tried, and the criteria. `leakcheck.campaigns.engine.run` does all the rest, and the command
line is derived from the options.
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from injectors import Plan, parse
from leakcheck.campaigns.result import Criterion, Finding
from leakcheck.errors import UsageError
from leakcheck.report import Verdict
from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.session import Stop

__all__ = ["Campaign", "Check", "Judged", "Made", "Option", "Options", "Trial", "TrialOptions"]


class Option(msgspec.Struct, frozen=True):
    """How an option is given on the command line.

    Args:
        help: what it means.
        metavar: what its value is called.
        name: with its dashes; made from the field's name where not given.
        parse: makes the field's value of the text; of the list of texts where it may be `repeated`.
        default: the text that is parsed where it is not given; where empty the field's own default counts.
        repeated: whether it may be given several times.
        was: its old name, which is still read, with a warning.
    """

    help: str
    metavar: str | None = None
    name: str = ""
    parse: Callable[[Any], Any] | None = None
    default: str = ""
    repeated: bool = False
    was: str = ""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of every campaign. Each field is one of the command line too, as its `Option` says."""

    seed: Annotated[int, Option("Random seed.", "S")] = 0
    settle: Annotated[float, Option("How long asynchronous teardown may take.", "SECONDS")] = 0.25

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        if not 0 <= self.settle <= 60:
            raise UsageError(f"--settle {self.settle}: give seconds from 0 to 60")

    @property
    def wanted(self) -> int | None:
        """How many trials there are to be; None where only the `limit_s` says."""
        return None

    @property
    def limit_s(self) -> float | None:
        """After how many seconds no further trial is begun; None where there is no such limit."""
        return None

    @property
    def live(self) -> bool:
        """Whether trials are made on the live host."""
        return False


class TrialOptions(Options, frozen=True, kw_only=True):
    """The options of campaigns whose trials have an arena each, or the live host."""

    iterations: Annotated[int, Option("Number of trials.", "N")] = 100
    plan: Annotated[
        Plan | None, Option("Fault plan of every trial, as a replay line gives it.", "PLAN", parse=parse)
    ] = None
    jobs: Annotated[int, Option("Trials at a time; 0: one for each CPU.", "J")] = 0
    host: Annotated[bool, Option("Run on the live host instead of in arenas.")] = False

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if self.iterations < 1:
            raise UsageError(f"--iterations {self.iterations}: give at least 1")
        if not 0 <= self.jobs <= 256:
            raise UsageError(f"--jobs {self.jobs}: give 1 to 256, or 0 for one a CPU")
        if self.host and self.jobs > 1:
            raise UsageError("--host --jobs: on the host trials see each other, so make one at a time")

    @property
    def wanted(self) -> int:
        """How many trials there are to be."""
        return self.iterations

    @property
    def live(self) -> bool:
        """Whether trials are made on the live host."""
        return self.host


class Trial(Protocol):
    """What the engine needs of a trial."""

    @property
    def outcome(self) -> Outcome:
        """The worst that holds."""


_Options = TypeVar("_Options", bound=Options)
_Trial = TypeVar("_Trial", bound=Trial)


class Made(msgspec.Struct, Generic[_Options, _Trial]):
    """All that a campaign made, for its criteria and findings; `facts` are what it `prepare`d."""

    target: Target
    options: _Options
    trials: list[_Trial]
    facts: Any
    executor: Any
    took: float = 0
    coverage: dict[str, str] = {}


Judged = tuple[Criterion, Verdict]
"""A criterion, and the verdict where it is not met."""
Check = Callable[[Any], Iterator[Judged]]
"""Judges what was `Made`; see `leakcheck.campaigns.criteria`."""


class Campaign(abc.ABC, Generic[_Options, _Trial]):
    """One campaign; most are a `leakcheck.campaigns.trial_campaign.TrialCampaign`."""

    name: ClassVar[str]
    question: ClassVar[str]
    unit: ClassVar[str] = "trials"
    strict: ClassVar[bool] = True
    """Whether a criterion that is not met is exit code 1, whatever the verdict."""
    options: type[_Options]

    def prepare(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Any:
        """Return what has to be known before the first trial."""

    @abc.abstractmethod
    def executor(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Executor[_Trial]:
        """Return who makes the trials."""

    @abc.abstractmethod
    def cases(self, target: Target, options: _Options, facts: Any) -> Iterator[Case]:
        """Yield what is tried, one after the other."""

    def finish(self, made: Made[_Options, _Trial], ui: Ui) -> None:
        """Find out what only can be when all trials are made; it may change `made`."""

    @abc.abstractmethod
    def criteria(self, options: _Options) -> Sequence[Check]:
        """Return what is asked of the trials."""

    @abc.abstractmethod
    def findings(self, made: Made[_Options, _Trial]) -> list[Finding]:
        """Return what was found, the worst first, each with its replay line."""

    def details(self, made: Made[_Options, _Trial]) -> dict[str, Any]:
        """Return more fields of the `leakcheck.campaigns.result.Result`."""
        del made
        return {}
