"""No fault, and a wrapper that holds other injectors to the protocol."""

# A protocol is given as a value, and nothing is made of it.
# mypy: disable-error-code="type-abstract"

from typing import ClassVar, Self

from injectors.plan import Plan
from injectors.protocol import (
    ActsBetween,
    Contends,
    Contest,
    Continues,
    Evidence,
    Exhausts,
    FailsCalls,
    Injector,
    ShapesArena,
    ShapesLaunch,
    Traces,
    Trial,
    offers,
)
from leakcheck.errors import UsageError

__all__ = ["Checked", "Nothing"]

_PLANS = ("normal", "timeout", "crash:signal", "crash:exit")


class Nothing:
    """Does nothing: the run ends by itself, by its wall limit, or by a crash of its program."""

    kinds: ClassVar[tuple[str, ...]] = ("normal", "timeout", "crash")
    may_miss = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return it; raise `UsageError` if the plan has more than its name."""
        if str(plan) not in _PLANS:
            raise UsageError(f"plan {str(plan)!r}: give one of {', '.join(_PLANS)}")
        return cls(plan)

    def apply(self, trial: Trial) -> Evidence:
        """Return at once."""
        del trial
        return Evidence(fired=True)


class Checked:
    """Checks another injector against the protocol: its plan is the requested one, and it is applied once."""

    def __init__(self, inner: Injector, plan: Plan) -> None:
        if inner.plan != plan or Plan.read(str(plan)) != plan:
            raise AssertionError(f"{type(inner).__name__}: plan {str(plan)!r} does not parse back: {inner.plan}")
        self._inner: Injector | None = inner
        self.plan, self.may_miss = plan, inner.may_miss
        self.harmless = isinstance(inner, Nothing)
        self.continues = self.harmless or (offers(inner, Continues) and inner.continues)
        self.arena_options = dict(inner.arena_options()) if offers(inner, ShapesArena) else {}
        self.launch_env = dict(inner.launch_env()) if offers(inner, ShapesLaunch) else {}
        traces = inner if offers(inner, Traces) else None
        self.stage = "launch" if traces is None else traces.stage
        self.trace = None if traces is None else traces.trace
        self.kills_payload = traces is not None and traces.kills_payload
        self.stages = inner.stages if offers(inner, FailsCalls) else {self.stage: 1}
        self.compared = inner.compared if offers(inner, FailsCalls) else False
        self._between = inner.between if offers(inner, ActsBetween) else None
        self.acts_between = self._between is not None
        self.exhausts = inner if offers(inner, Exhausts) else None
        self._contend = inner.contend if offers(inner, Contends) else None
        self.contends = self._contend is not None

    def apply(self, trial: Trial) -> Evidence:
        """Apply it, for the first and last time."""
        inner, self._inner = self._inner, None
        if inner is None:
            raise AssertionError(f"plan {self.plan}: applied twice")
        if not isinstance(evidence := inner.apply(trial), Evidence):
            raise AssertionError(f"plan {self.plan}: gave {evidence!r} for evidence")
        return evidence

    def contend(self, contest: Contest) -> Evidence:
        """Let runs contend for a box, for the first and last time."""
        contend, self._contend = self._contend, None
        if contend is None:
            raise AssertionError(f"plan {self.plan}: contended twice, or not at all")
        return contend(contest)

    def between(self, trial: Trial) -> bool:
        """Act between run and recovery, if it can; return whether nothing is missing of the fault."""
        return self._between is None or self._between(trial) is not False
