"""The campaign ``faults``: what happens if a step of a sandbox's clean-up fails?"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from injectors import Plan
from injectors.errnos import ALLOWED, USUAL
from injectors.syscalls import NO_LIE, WATCHED, Fault, Mode, fault_plan
from leakcheck._native import OPERATIONS
from leakcheck.campaigns.campaign import Check, Made, Option
from leakcheck.campaigns.criteria import reached, zero
from leakcheck.campaigns.lies import lies, recall
from leakcheck.campaigns.sweep import Sweep
from leakcheck.campaigns.sweep_options import SweepOptions
from leakcheck.errors import UsageError
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials.case import case_of
from leakcheck.trials.crash_points import Points, Recorded, is_step, step_phase
from leakcheck.trials.executor import Ui
from leakcheck.trials.payload import COUNTING
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

# Operations that are points of `crash --points all` only.
_FREQUENT = frozenset(
    ["write", "sync", "send", "connect", "io_submit", "semop", "msgsnd", "msgrcv", "mq_send", "mq_receive"]
)
_DELAY_MS = 100
# Runs without a lie to compare with, of each stage.
_HONEST = 2


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


class FaultsOptions(SweepOptions, frozen=True, kw_only=True):
    """Which calls fail, and how; a `plan` replaces them all."""

    syscalls: Annotated[tuple[str, ...], Option("Operations whose calls fail.", "OPERATION,…", parse=_words)] = tuple(
        USUAL
    )
    errno: Annotated[
        tuple[str, ...] | None, Option("Errors to fail with. Default: what each can meet.", "ERROR,…", parse=_words)
    ] = None
    mode: Annotated[Mode, Option("An error instead of the call, or after it; success without the call; a delay.")] = (
        "fail"
    )
    any_errno: Annotated[bool, Option("Allow errors that a call's manual page does not give.")] = False
    of_plan: ClassVar[tuple[str, ...]] = ("ending", "phase", "shard", "syscalls", "errno", "mode")

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        if wrong := [one for one in self.syscalls if one not in OPERATIONS]:
            raise UsageError(f"--syscalls {wrong[0]!r}: no operation; there are {', '.join(OPERATIONS)}")
        if not self.syscalls:
            raise UsageError(f"--syscalls: name an operation, such as {', '.join(USUAL)}")
        if self.errno is not None and self.mode in ("lie", "delay"):
            raise UsageError(f"--errno --mode {self.mode}: it has no error")
        if self.plan is None and self.mode in ("fail", "after"):
            for operation in self.syscalls:
                self.errors(operation)
        if self.mode == "lie" and (none := [one for one in self.syscalls if one in NO_LIE]):
            raise UsageError(f"--mode lie --syscalls {none[0]}: nothing can stand for what {none[0]} returns")

    def errors(self, operation: str) -> Sequence[str]:
        """Return the errors with which the calls of `operation` fail; raise `UsageError` if they never have those."""
        if self.errno is None:
            usual = USUAL.get(operation) or sorted(ALLOWED.get(operation, ()))
            if not usual:
                raise UsageError(f"--syscalls {operation}: leakcheck does not know its errors; name some with --errno")
            return usual
        known = ALLOWED.get(operation, frozenset())
        fitting = [one for one in self.errno if self.any_errno or one in known]
        if not fitting:
            there = ", ".join(sorted(known)) or "none that leakcheck knows of"
            raise UsageError(
                f"--errno {','.join(self.errno)}: not in the manual page of {operation}, which has {there}; "
                "--any-errno allows it"
            )
        return fitting


class Faults(Sweep[FaultsOptions]):
    """Has every step of a clean-up fail, once and from then on, in a run and in the recovery of a crashed one."""

    name = "faults"
    question = "What does a target leave behind if a step of its clean-up fails?"
    options = FaultsOptions
    points_name = "calls"
    without = "makes no such call: no step of its clean-up can fail"

    def record(
        self, target: Target, options: FaultsOptions, stop: Stop, *, every: bool = False, watched: bool = False
    ) -> Points:
        """Record the calls that the options name."""
        every |= not _FREQUENT.isdisjoint(options.syscalls)
        watched |= not {*WATCHED}.isdisjoint(options.syscalls)
        known = super().record(target, options, stop, every=every, watched=watched)
        return Points(
            [one for one in known.points if _is_step(options, one)],
            [one for one in known.unsteady if _is_step(options, one)],
            known.notes,
        )

    def submission(self, target: Target, options: FaultsOptions) -> Submission:
        """Return one that prints a line at its normal end: an OK that nobody earned lacks it."""
        return COUNTING if options.ending == "normal" else super().submission(target, options)

    def select(self, options: FaultsOptions, points: Sequence[Recorded]) -> Iterator[Plan]:
        """Yield a fault of each kind at each call, and from each call on."""
        for one in points:
            ending = "sleeping" if one.point.stage == "recover" else options.ending
            for fault in _faults(options, one):
                yield fault_plan([fault], notified=one.notified, ending=ending, any_errno=options.any_errno)

    def plans(self, options: FaultsOptions, points: Sequence[Recorded]) -> Iterator[Plan]:
        """Yield the plans that the options ask for; before lies, runs to compare them with."""
        yield from _honest(options, points)
        yield from super().plans(options, points)

    def finish(self, made: Made[FaultsOptions, Trial], ui: Ui) -> None:
        """Repeat findings, and in their place what the oracle seems not to see."""
        if made.options.mode == "lie" and made.options.plan is None:
            # Before and after: what varies with the load of the machine is no difference.
            wall = made.target.adapter.shortest_wall
            honest = [case_of(plan, wall) for plan in _honest(made.options, made.facts.points)]
            made.trials.extend(made.executor.run(lambda: iter(honest)))
            made.wanted = None if made.wanted is None else made.wanted + len(honest)
            missed = {trial.case for trial in made.trials if str(trial.case.plan) in lies(made.trials).missed}
            again = [case for case in missed for _ in range(_HONEST)]
            made.trials.extend(made.executor.run(lambda: iter(again)))
            made.wanted = None if made.wanted is None else made.wanted + len(again)
        super().finish(made, ui)

    def again_of(self, options: FaultsOptions) -> int:
        """Return how often a finding is tried once more: what a lie leaves is no finding of the target's."""
        return 0 if options.mode == "lie" else super().again_of(options)

    def criteria(self, options: FaultsOptions) -> Sequence[Check]:
        """Return what is asked of the trials; lies ask it of leakcheck."""
        if options.mode == "lie":
            return [recall, zero("unknown"), reached()]
        return super().criteria(options)

    def details(self, made: Made[FaultsOptions, Trial]) -> dict[str, Any]:
        """Return the outcomes by phase, and what became of lies."""
        found = super().details(made)
        if made.options.mode == "lie":
            found["points"] |= {"lies": msgspec.to_builtins(lies(made.trials))}
        return found

    def instants(self, one: Recorded) -> Iterator[tuple[str, str]]:
        """Yield the call, and its phase."""
        yield f"{one.point.stage}:{one.point}", step_phase(one)

    def phase_of(self, one: Recorded) -> str:
        """Return the phase of a call as a step of a clean-up."""
        return step_phase(one)

    def instant(self, plan: Plan) -> str:
        """Return the first call of a plan."""
        call = plan.argument.partition(":")[0].removesuffix("+")
        return f"{plan.kind}:{call.removesuffix('*')}{'1' * call.endswith('*')}"


def _is_step(options: FaultsOptions, one: Recorded) -> bool:
    """Return whether a call is one that the options ask for."""
    operation = one.point.operation
    if operation not in options.syscalls or (one.notified and operation in WATCHED):
        return False
    return step_phase(one) == options.phase if options.phase else operation not in USUAL or is_step(one)


def _honest(options: FaultsOptions, points: Sequence[Recorded]) -> Iterator[Plan]:
    """Yield plans that change nothing, for each stage; none unless lies are compared with them."""
    if options.mode != "lie" or options.plan is not None:
        return
    first = {one.point.stage: one for one in reversed(points)}
    for one in first.values():
        ending = "sleeping" if one.point.stage == "recover" else options.ending
        for _ in range(_HONEST):
            yield fault_plan([Fault(one.point, "delay", ms=1)], notified=one.notified, ending=ending)


def _faults(options: FaultsOptions, one: Recorded) -> Iterator[Fault]:
    # Linux closes a descriptor even if it reports an error (close(2)). A wait that began while the payload lived fails
    # once this has ended, as it does for who ignores SIGCHLD (wait(2)).
    waits = one.phase != step_phase(one)
    after = options.mode == "after" or one.point.operation == "close" or waits
    for lasting in (False, True):
        if options.mode == "lie":
            # Who believes that its payload has ended, while it runs, ends with another state in each run.
            yield from [Fault(one.point, "lie", lasting)] if not waits else []
        elif options.mode == "delay":
            yield Fault(one.point, "delay", lasting, ms=_DELAY_MS)
        elif not (after and one.notified):
            for error in options.errors(one.point.operation):
                yield Fault(one.point, "after" if after else "fail", lasting, error)
