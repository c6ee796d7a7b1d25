"""The interface of a campaign: one question, answered by many trials.

A new campaign is a class like `leakcheck.campaigns.leaks.Leaks` and a line in `leakcheck.campaigns.CAMPAIGNS`: its
options, the cases to try, and the criteria. `leakcheck.campaigns.engine.run` does the rest, and the command line is
derived from the options.
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from rich.text import Text

from injectors import Plan, parse
from leakcheck.campaigns.render import lines
from leakcheck.campaigns.result import Criterion, Finding, Result
from leakcheck.errors import UsageError
from leakcheck.report import Verdict
from leakcheck.targets import Target
from leakcheck.trials.case import Case
from leakcheck.trials.executor import Executor, Ui
from leakcheck.trials.explanation import Explanation
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.runner import Stop
from leakcheck.trials.spans import Spans


class Option(msgspec.Struct, frozen=True):
    """How an option is given on the command line.

    Args:
        help: its description.
        metavar: the name of its value.
        name: including the dashes; default: derived from the field's name.
        parse: converts the text to the field's value; if `repeated`, the list of texts.
        repeated: whether the option may be given several times.
        was: its old name, which is still read, with a warning.
    """

    help: str
    metavar: str | None = None
    name: str = ""
    parse: Callable[[Any], Any] | None = None
    repeated: bool = False
    was: str = ""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of every campaign. Each field is also a command line option, as its `Option` describes."""

    seed: Annotated[int, Option("Random seed.", "S")] = 0
    settle: Annotated[float, Option("Time allowed for asynchronous teardown.", "SECONDS")] = 0.25

    def check(self) -> None:
        """Raise `UsageError` for an impossible option."""
        if not 0 <= self.settle <= 60:
            raise UsageError(f"--settle {self.settle}: give seconds from 0 to 60")

    @property
    def wanted(self) -> int | None:
        """The number of trials; None if only `limit_s` bounds it."""
        return None

    @property
    def limit_s(self) -> float | None:
        """Seconds after which no further trial starts; None for no limit."""
        return None

    @property
    def live(self) -> bool:
        """Whether trials run on the live host."""
        return False


class TrialOptions(Options, frozen=True, kw_only=True):
    """The options of campaigns whose trials run in an arena each, or on the live host."""

    iterations: Annotated[int, Option("Number of trials.", "N")] = 100
    plan: Annotated[Plan | None, Option("Fault plan of every trial, as in a replay line.", "PLAN", parse=parse)] = None
    enough: Annotated[int, Option("Stop after N trials with the same finding; 0: never.", "N")] = 0
    jobs: Annotated[int, Option("Trials at a time, beside those that only wait; 0: one per CPU.", "J")] = 0
    host: Annotated[bool, Option("Run on the live host instead of in arenas.")] = False
    fewest: ClassVar[int] = 1

    def check(self) -> None:
        """Raise `UsageError` for an impossible option."""
        super().check()
        if self.iterations < self.fewest:
            raise UsageError(f"--iterations {self.iterations}: give at least {self.fewest}")
        if self.enough < 0:
            raise UsageError(f"--enough {self.enough}: give at least 1, or 0 for no such end")
        if not 0 <= self.jobs <= 256:
            raise UsageError(f"--jobs {self.jobs}: give 1 to 256, or 0 for one per CPU")
        if self.host and self.jobs > 1:
            raise UsageError("--host --jobs: trials on the live host see each other; use --jobs 1")

    @property
    def wanted(self) -> int:
        """The number of trials."""
        return self.iterations

    @property
    def live(self) -> bool:
        """Whether trials run on the live host."""
        return self.host


class Trial(Protocol):
    """What the engine needs from a trial."""

    @property
    def outcome(self) -> Outcome:
        """The worst outcome that holds."""


_Options = TypeVar("_Options", bound=Options)
_Trial = TypeVar("_Trial", bound=Trial)


class Made(msgspec.Struct, Generic[_Options, _Trial]):
    """Everything that a campaign made, for its criteria and findings.

    `facts` is the result of `prepare`, `wanted` the number of trials to make; None if only time bounds it.
    `explanations` are those of findings, by plan; `spans` is what a run without a fault makes, if that was recorded.
    `record` records a trial that `Campaign.finish` adds, so that it is not lost if the campaign is cut off.
    """

    target: Target
    options: _Options
    trials: list[_Trial]
    facts: Any
    executor: Any
    wanted: int | None = None
    took: float = 0
    coverage: dict[str, str] = {}
    explanations: dict[str, Explanation] = {}
    spans: Spans | None = None
    record: Callable[[_Trial], None] = lambda _: None


Judged = tuple[Criterion, Verdict]
"""A criterion, and the verdict if it is not met."""
Check = Callable[[Any], Iterator[Judged]]
"""Judges a `Made`; see `leakcheck.campaigns.criteria`."""


class Campaign(abc.ABC, Generic[_Options, _Trial]):
    """One campaign; most are a `leakcheck.campaigns.trial_campaign.TrialCampaign`."""

    name: ClassVar[str]
    question: ClassVar[str]
    unit: ClassVar[str] = "trials"
    strict: ClassVar[bool] = True
    """Whether an unmet criterion means exit code 1, whatever the verdict."""
    streams: ClassVar[bool] = False
    """Whether its trials are so many that they stay in a store, which it needs."""
    options: type[_Options]

    def prepare(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Any:
        """Return the facts that are needed before the first trial."""

    def wanted(self, options: _Options, facts: Any) -> int | None:
        """Return the number of trials; None if only time bounds it."""
        del facts
        return options.wanted

    @abc.abstractmethod
    def executor(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Executor[_Trial]:
        """Return the executor of the trials."""

    @abc.abstractmethod
    def cases(self, target: Target, options: _Options, facts: Any) -> Iterator[Case]:
        """Yield the cases to try, one after the other."""

    def kept(self, made: Made[_Options, _Trial]) -> bytes:
        """Return what `go_on` needs, beside the trials, if the campaign is cut off now."""
        del made
        return b""

    def go_on(self, made: Made[_Options, _Trial], kept: bytes) -> None:
        """Take over what was `kept` of a campaign that was cut off."""

    def still_valid(self, made: Made[_Options, _Trial], trials: Sequence[_Trial]) -> list[_Trial]:
        """Return those `trials` of a campaign that was cut off which need not be made again."""
        del made
        return [*trials]

    def rest(self, made: Made[_Options, _Trial], cases: Iterator[Case]) -> Iterator[Case]:
        """Return the `cases` without those that were made before the campaign was cut off."""
        del made
        return cases

    def wanted_in_all(self, made: Made[_Options, _Trial]) -> int | None:
        """Return the number of trials of a campaign that goes on, those that it has among them."""
        return made.wanted

    def enough(self, made: Made[_Options, _Trial]) -> bool:
        """Return whether no further trial is needed."""
        del made
        return False

    def finish(self, made: Made[_Options, _Trial], ui: Ui) -> None:
        """Complete the evaluation after the last trial; it may change `made`."""

    def so_far(self, made: Made[_Options, _Trial]) -> Made[_Options, _Trial]:
        """Return `made`, a copy of what was made so far, evaluated as far as that needs no further trial."""
        return made

    @abc.abstractmethod
    def criteria(self, options: _Options) -> Sequence[Check]:
        """Return the criteria that the trials must meet."""

    @abc.abstractmethod
    def findings(self, made: Made[_Options, _Trial]) -> list[Finding]:
        """Return the findings, the worst first, each with its replay line."""

    def shown(self, options: _Options, result: Result) -> Iterator[Text] | str:
        """Return how `result` is shown: lines on stderr, or a text on stdout."""
        del options
        return lines(result)

    def details(self, made: Made[_Options, _Trial]) -> dict[str, Any]:
        """Return additional fields of the `leakcheck.campaigns.result.Result`."""
        del made
        return {}
