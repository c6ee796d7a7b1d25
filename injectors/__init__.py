"""Injectors: they perform fault plans on a running target.

A new injector is one class with the methods of `Injector`: `register` it, or declare it as an entry point of the group
``leakcheck.injectors``.
"""

import functools
import importlib.metadata

from injectors.exhaustion import Exhaustion
from injectors.locks import Locks
from injectors.nothing import Checked, Nothing
from injectors.plan import NORMAL, Plan
from injectors.protocol import (
    ActsBetween,
    Contends,
    Contest,
    Evidence,
    Exhausts,
    FailsCalls,
    Injector,
    Room,
    ShapesArena,
    ShapesLaunch,
    Supervisor,
    Traces,
    Trial,
)
from injectors.state import State
from injectors.syscalls import Syscalls
from injectors.timed import Timed
from leakcheck.errors import UsageError

__all__ = [
    "NORMAL",
    "ActsBetween",
    "Checked",
    "Contends",
    "Contest",
    "Evidence",
    "Exhausts",
    "FailsCalls",
    "Injector",
    "Plan",
    "Room",
    "ShapesArena",
    "ShapesLaunch",
    "Supervisor",
    "Traces",
    "Trial",
    "injector_for",
    "parse",
    "register",
]

_ENTRY_POINTS = "leakcheck.injectors"
_known: dict[str, type[Injector]] = {}


def register(injector: type[Injector]) -> type[Injector]:
    """Register `injector` for plans of its kinds; usable as a decorator.

    Raises:
        UsageError: another injector has one of these kinds.
    """
    for kind in injector.kinds:
        if kind in _known and _name(_known[kind]) != _name(injector):
            raise UsageError(f"plans {kind!r} have two injectors: {_name(_known[kind])} and {_name(injector)}")
    _known.update(dict.fromkeys(injector.kinds, injector))
    return injector


def _name(injector: type[Injector]) -> str:
    return f"{injector.__module__}.{injector.__qualname__}"


for _one in (Nothing, Timed, Syscalls, State, Exhaustion, Locks):
    register(_one)


@functools.cache
def _load_others() -> None:
    for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:
            raise UsageError(f"entry point {_ENTRY_POINTS}: {entry.name} = {entry.value}: {error}") from error


def injector_for(plan: Plan) -> Checked:
    """Return a new injector that performs `plan`.

    Raises:
        UsageError: no injector performs such plans, or the plan is wrong.
    """
    _load_others()
    if (injector := _known.get(plan.kind)) is None:
        raise UsageError(f"plan {str(plan)!r}: no injector for {plan.kind!r}; there are {', '.join(sorted(_known))}")
    return Checked(injector.of(plan), plan)


def parse(line: str) -> Plan:
    """Return the plan in `line`, which an injector can perform; raise a `UsageError` that says what is wrong."""
    plan = Plan.read(line)
    injector_for(plan)
    return plan
