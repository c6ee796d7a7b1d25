"""What an injector offers, and what it sees of the trial that it acts on."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import msgspec
import psutil

from injectors.plan import Plan

__all__ = ["ActsBetween", "Evidence", "Injector", "Supervisor", "Trial"]


class Evidence(msgspec.Struct, frozen=True):
    """Whether the fault happened, and when: milliseconds after the supervisor's start."""

    fired: bool
    when_ms: float | None = None


class Supervisor(Protocol):
    """The launched process of the target."""

    @property
    def pidfd(self) -> int:
        """Its descriptor, readable once it has ended."""

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing if it has ended."""


class Trial(Protocol):
    """The trial, as injectors see it."""

    @property
    def supervisor(self) -> Supervisor:
        """The launched process."""

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its start."""

    def tree(self) -> set[psutil.Process]:
        """Return the supervisor and all that it started."""


class Injector(Protocol):
    """Performs one fault plan on one run, once.

    `may_miss`: the plan is good also where its instant comes after the run's end; the fault of any other that did not
    fire was not tested, and its trial is *not reached*, never a pass.
    """

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of plans that it performs."""
    may_miss: ClassVar[bool]

    @property
    def plan(self) -> Plan:
        """The plan that it performs."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise `UsageError` saying what in it is wrong."""

    def apply(self, trial: Trial) -> Evidence:
        """Act on the run, which has just been started; return once the fault has happened or the run has ended.

        What it changed outside of the trial's arena it has undone by then.
        """


@runtime_checkable
class ShapesArena(Protocol):
    """A power that some injectors have: the arena itself is made for the fault."""

    def arena_options(self) -> Mapping[str, Any]:
        """Return what `leakcheck.arena.Arena` is to be made with besides."""


@runtime_checkable
class ShapesLaunch(Protocol):
    """A power that some injectors have: the launch carries the fault."""

    def launch_env(self) -> Mapping[str, str]:
        """Return what is added to the environment of the launch."""


@runtime_checkable
class ActsBetween(Protocol):
    """A power that some injectors have: a second act when the run has ended, before the recovery."""

    def between(self, trial: Trial) -> None:
        """Act on what the run left."""
