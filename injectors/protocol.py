"""The interface of an injector, and its view of the trial."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

import msgspec
import psutil

from injectors.plan import Plan

__all__ = [
    "ActsBetween",
    "Contends",
    "Contest",
    "Continues",
    "Evidence",
    "Exhausts",
    "FailsCalls",
    "Injector",
    "Keeps",
    "Limits",
    "Room",
    "ShapesArena",
    "ShapesLaunch",
    "Started",
    "Supervisor",
    "Traces",
    "Trial",
    "offers",
]

_T = TypeVar("_T")


class Evidence(msgspec.Struct, frozen=True):
    """Whether the fault happened, and when: milliseconds after the supervisor's start."""

    fired: bool
    when_ms: float | None = None


class Supervisor(Protocol):
    """The launched process of the target."""

    @property
    def pidfd(self) -> int:
        """Its pidfd, readable once it has ended."""

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing if it has ended."""


class Started(Protocol):
    """A process of the injector's own."""

    pid: int

    def kill(self) -> None:
        """Send SIGKILL; do nothing if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raise `subprocess.TimeoutExpired`."""

    def close(self) -> None:
        """Close its descriptors."""


class Room(Protocol):
    """What a trial's arena has, and nothing outside of it has: what can be exhausted."""

    @property
    def cgroups(self) -> Mapping[str, str]:
        """Its cgroup on the host, by hierarchy."""

    def file_systems(self) -> Sequence[tuple[str, int]]:
        """Return its writable file systems: where commands see them, and a directory of each."""

    def own(self) -> set[int]:
        """Return the process ids of what keeps it up, which is not the target's."""

    def tracer(self) -> int:
        """Return the process id of what starts commands in it, and traces them."""

    def members(self, cgroup: Path) -> set[int]:
        """Return the process ids of all that is in one of its cgroups and below."""

    def tree(self) -> set[psutil.Process]:
        """Return everything else that runs in it."""

    def start(self, argv: Sequence[str], output: int) -> Started:
        """Start a command in it, untraced, that writes to `output`."""


class Keeps(Protocol):
    """The files of a trial, as injectors see them."""

    def directory(self, path: str) -> AbstractContextManager[int]:
        """Yield a descriptor of the directory that commands see at `path`; no link leads out of the trial's host."""


class Trial(Keeps, Protocol):
    """The trial, as injectors see it."""

    @property
    def room(self) -> Room:
        """Its arena."""

    def held(self, instant: str) -> int:
        """Return the process that the tracer holds at an `instant` of the request, or has held; 0 if there is none."""

    def release(self) -> None:
        """Let what the tracer holds go on."""

    @property
    def supervisor(self) -> Supervisor:
        """The launched process."""

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its start."""

    def tree(self) -> set[psutil.Process]:
        """Return the supervisor and everything that it started."""

    def payload_runs(self) -> bool:
        """Return whether the sleeping payload has started."""

    def fired(self) -> bool:
        """Return whether the tracer of the run reported that the fault happened."""

    def reports(self) -> Sequence[Mapping[str, Any]]:
        """Return what the tracer reported of the launch."""

    def state_files(self, declared: str) -> Sequence[str]:
        """Return the paths, as commands see them, that exist of what the adapter's ``state_files`` calls `declared`."""


class Contest(Keeps, Protocol):
    """Several runs in one box, as injectors see them. The first one, the holder, has been prepared."""

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its begin."""

    def hold(self, *, until_seen: bool = True) -> bool:
        """Start the holder; return whether its payload runs, which stays until `release`."""

    def come(self, count: int, *, waiting: bool = False) -> None:
        """Start so many contenders at once, which wait for the box if `waiting`."""

    def wait(self, *, holder: bool = False) -> None:
        """Let everybody run to the end; with `holder`, only once the holder has ended. Payloads end one by one."""

    def wait_for_fault(self) -> bool:
        """Wait until the tracer has killed the holder or that has ended; return whether it was killed."""

    def release(self) -> None:
        """End the holder's payload, as by itself."""

    def signal(self, number: int) -> bool:
        """Send the holder's supervisor a signal; return false if it has ended."""

    def killed(self) -> None:
        """Note that the holder is killed: from now on the box has to become free, if need be by the recovery."""

    def recover(self) -> None:
        """Run the target's recovery while somebody has the box: it must refuse, or do nothing."""

    def recover_once(self) -> bool:
        """Run the target's recovery, which the tracer is to kill; return whether it did."""

    def take_pid(self) -> bool:
        """Start a process that has the pid of the holder, which has ended; return whether it got it."""

    def outlast(self) -> None:
        """Wait as long as the box of a dead holder may take to be free again, as far as the payloads last."""

    def keep_locks(self) -> None:
        """Note what a disk has of the lock files, for the next boot."""

    def boot(self) -> bool:
        """Recover, and show another boot id, with the lock files that were kept; return whether that could be."""

    def wait_for_others(self, first: int = 1) -> bool:
        """Wait until all but the holder have ended or got the box, or, of those that wait, had time to begin so.

        They are those from number `first`. It returns whether anybody has the box.
        """

    def lock_files(self, declared: str) -> Sequence[str]:
        """Return the paths that exist of what the adapter's ``locks.files`` calls `declared`."""

    def elsewhere(self, content: bytes) -> str:
        """Return the path of a file with this content that is not the target's."""

    def tolerate(self) -> None:
        """Note that the lock is damaged from now on: a contender may fail, if it says so."""


class Injector(Protocol):
    """Performs one fault plan on one run, once.

    `may_miss`: the plan is also valid if its instant is after the run's end. Any other plan whose fault did not fire
    was not tested: its trial is *not reached*, never a pass.
    """

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of plans that it performs."""

    @property
    def may_miss(self) -> bool:
        """Whether the plan is also valid if its instant is after the run's end."""

    @property
    def plan(self) -> Plan:
        """The plan that it performs."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the injector of `plan`; raise a `UsageError` that says what is wrong."""

    def apply(self, trial: Trial) -> Evidence:
        """Act on the run, which has just started; return once the fault has happened or the run has ended.

        By then, changes outside the trial's arena must be undone.
        """


@runtime_checkable
class ShapesArena(Protocol):
    """Optional interface: the fault changes the options of the arena."""

    def arena_options(self) -> Mapping[str, Any]:
        """Return additional options of `leakcheck.arena.Arena`."""


@runtime_checkable
class ShapesLaunch(Protocol):
    """Optional interface: the fault changes the launch."""

    def launch_env(self) -> Mapping[str, str]:
        """Return additions to the environment of the launch."""


@runtime_checkable
class ActsBetween(Protocol):
    """Optional interface: a second action after the run has ended, before the recovery. Other boxes must still work."""

    def between(self, trial: Trial) -> bool | None:
        """Act on what the run left; return false if there was nothing to act on."""


@runtime_checkable
class Contends(Protocol):
    """Optional interface: several runs contend for one box; it takes the place of `Injector.apply`."""

    def contend(self, contest: Contest) -> Evidence:
        """Start the runs, act on them, and return once all have ended."""


@runtime_checkable
class Continues(Protocol):
    """Optional interface: if `continues`, the run goes on after the fault, and what follows a normal end follows."""

    continues: bool


@runtime_checkable
class Traces(Protocol):
    """Optional interface: commands of the target are traced, and the fault happens at a point of one of them."""

    stage: str
    """The stage of the fault: ``prepare``, ``launch``, ``finish`` or ``recover``."""

    kills_payload: bool
    """Whether the fault ends the payload, too, if it runs: then no status is OK."""

    def trace(self, stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        """Return how the `number`-th command of `stage`, from 0, is traced (``trace::Request`` of the warden)."""


@runtime_checkable
class FailsCalls(Traces, Protocol):
    """Optional interface: calls of traced commands fail, and the commands go on."""

    stages: Mapping[str, int]
    """How many faults each stage has, a kill among them; all of them happen, or the plan was not tested."""

    compared: bool
    """Whether the state in which the stage ends is compared with that of other runs."""


class Limits(Protocol):
    """An exhausted resource."""

    errors: tuple[str, ...]
    """Names of the errors of calls that lack it."""
    lasts: bool
    """Whether commands that clean up after a run can be started under it, too."""

    def proof(self, room: Room) -> str:
        """Return what proves that the target ran against the limit; empty if nothing does."""

    def holds(self, room: Room) -> bool:
        """Return whether the limit is still in force."""

    def lift(self, room: Room) -> None:
        """Release it; do nothing if it is not exhausted."""


@runtime_checkable
class Exhausts(Traces, Protocol):
    """Optional interface: a resource is exhausted from some moment on, until it is released."""

    limit: Limits

    under: bool
    """Whether it is released after the recovery only."""

    namespaces: Mapping[str, str]
    """The payload's namespaces by type, as far as they are known."""


def offers(injector: object, interface: type[_T]) -> TypeGuard[_T]:
    """Return whether `injector` has an optional interface, as `isinstance` tells it: it has all the names.

    Before Python 3.12, each `isinstance` collects the names again: 0.2 ms in each trial for all of them.
    """
    return all(hasattr(injector, name) for name in _names(interface.__mro__))


@functools.cache
def _names(bases: tuple[type, ...]) -> tuple[str, ...]:
    """Return the names that these classes declare, if they are interfaces of this module."""
    own = [base for base in bases if base.__module__ == __name__]
    # Since Python 3.14 a class's own namespace has no annotations.
    names = [name for base in own for name in (*inspect.get_annotations(base), *vars(base))]
    return tuple(name for name in dict.fromkeys(names) if not name.startswith("_"))
