"""A stage: one service in an arena of its own, with clients in its network, for one scenario."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import urlsplit

from leakcheck.arena import Arena
from leakcheck.errors import TargetError
from leakcheck.report import Leak
from leakcheck.service.client import Answer, Client
from leakcheck.service.contract import Contract, Tenant
from leakcheck.service.history import History
from leakcheck.service.lifecycle import Processes
from leakcheck.service.network import Network
from leakcheck.service.residue import Baseline
from leakcheck.service.scenario import Failed, NotApplicable, Profile
from leakcheck.service.work import Runs
from leakcheck.targets.executables import binds

if TYPE_CHECKING:
    from leakcheck.service.canary import Listeners

__all__ = ["Stage"]

_T = TypeVar("_T")
_START, _QUIET = 3.0, 0.15
_NOBODY = Tenant(name="leakcheck")


class Stage:
    """The service of `contract` in a new arena, ready.

    Args:
        contract: the contract.
        path: its file.
        seed: of what is drawn.
        profile: how much is tried.
        settle: seconds that residue has to go away.
        size: bytes that the service may write to each of its directories; None for no limit of ours.
        stop: whether the user wants to end.
        actions: the history to replay, for the scenario of histories.
        prepare: changes the arena before its baseline; the `stack` of the stage ends what it begins.

    Raises:
        TargetError: the service does not start.
        StoppedError: the user wants to end.
        UnavailableError: this user cannot enter the arena's network.
    """

    def __init__(
        self,
        contract: Contract,
        path: Path,
        *,
        seed: int,
        profile: Profile,
        settle: float,
        size: int | None = None,
        stop: Callable[[], bool],
        actions: Sequence[str] = (),
        prepare: Callable[["Stage"], None] | None = None,
    ) -> None:
        self._shape = prepare
        self.contract, self.path, self.profile, self.actions = contract, path, profile, actions
        self.random = Random(seed)  # noqa: S311 - of trials, not of secrets
        self.seed = seed
        self.stop = stop
        self._settle = settle
        values = contract.values(path)
        needed = [
            values["contract_dir"],
            *(one for process in contract.processes.values() for one in process.start[:1]),
        ]
        needed = [one.replace("{python}", values["python"]) for one in needed]
        shown = binds([one for one in needed if one.startswith("/")])
        self.arena = Arena(hostname="service", size=size, network="own" if contract.local else "host", binds=shown)
        self.history = History(contract.limits.active_per_user)
        self._clients: dict[str, Client] = {}
        self._there: set[str] = set()
        self.stack = contextlib.ExitStack()
        self.unseen: dict[str, str] = {}
        """What a scenario claims and could not try or see, with the reason: such a row is unknown, and no pass."""
        self.listeners: Listeners | None = None
        self.undo: Callable[[], None] = lambda: None
        """Undoes what a scenario changed in the arena, before what is left is looked at."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.arena)
            self.network = stack.enter_context(Network(self.arena.init))
            ask = self.client(0)
            health = self.contract.health.path
            self.processes = stack.enter_context(
                Processes(
                    self.contract,
                    self.path,
                    self.arena,
                    self.network,
                    lambda: ask.request("GET", health, auth=False, timeout=5),
                    self.stop,
                    self._backend_ended,
                )
            )
            self.stack = stack
            if self._shape is not None:
                self._shape(self)
            self._empty = Baseline(self.arena, self.contract.data.keeps, idle=False)
            self.processes.start_all()
            self._idle: Baseline | None = None
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it down."""
        # The file systems of an arena exist as long as a snapshot holds them.
        self._idle = None
        self.__dict__.pop("_empty", None)
        self.stack.close()

    def begin(self) -> None:
        """Take the baseline of the idle service, once it has run a job: then all of it is there.

        It raises `TargetError` if no job ends.
        """
        client = self.client()
        try:
            if client.has("short") or client.has("long"):
                client.whole(self.contract.health.timeout)
        except Failed as failed:
            why = f"its first job: {failed}{self.processes.last_words()}"
            raise TargetError(f"{self.contract.name}: {why}") from failed
        self._there = self._listed()
        self._wait_quiet()
        if ended := self.processes.ended():
            raise TargetError(f"{self.contract.name}: {ended[0]}{self.processes.last_words()}")
        self._idle = Baseline(self.arena, self.contract.data.keeps, idle=True)

    def _wait_quiet(self) -> None:
        """Wait, at most some seconds, until no process has come or gone for a moment: some are ready later."""
        until, before, since = time.monotonic() + _START, self.arena.pids(), time.monotonic()
        while (now := time.monotonic()) < until and now - since < _QUIET:
            time.sleep(_QUIET / 5)
            if (pids := self.arena.pids()) != before:
                before, since = pids, now

    @property
    def full(self) -> bool:
        """Whether much is tried."""
        return self.profile == "full"

    def client(self, number: int = 0) -> Client:
        """Return a client of the user with this number; raise `NotApplicable` if the contract has not so many."""
        tenants = self.contract.auth.tenants or [_NOBODY]
        if number >= len(tenants):
            raise NotApplicable(f"the contract names {len(tenants)} tenants; this needs {number + 1}")
        tenant = tenants[number]
        if tenant.name not in self._clients:
            self._clients[tenant.name] = Client(self.contract, self.network, tenant, self.history)
        return self._clients[tenant.name]

    def runs(self) -> Runs:
        """Return what sees which jobs are at work, to enter."""
        return Runs(self.arena, by_id=self.contract.jobs.id_in_arguments)

    def restart(self, name: str, *, kill: bool = True, pause: float = 0.0) -> None:
        """End a process of the service, by SIGKILL or SIGTERM, start it again, and wait until the service is ready."""
        (self.processes.kill if kill else self.processes.stop)(name)
        time.sleep(pause)
        self.processes.start(name)
        self.processes.wait_ready(self.contract.limits.recovery)

    def break_off(self, client: Client, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send the head of a request and half of its body, and let the connection go."""
        base = urlsplit(self.contract.base_url)
        told = {"Host": base.netloc, **client.headers, **headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        host = "127.0.0.1" if base.hostname == "localhost" else base.hostname or ""
        with self.network.connect(host, base.port or 80, 10) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])

    def _backend_ended(self) -> None:
        for client in self._clients.values():
            client.backend_ended()

    def at_once(self, work: Sequence[Callable[[], _T]]) -> list[_T]:
        """Do all at the same time, and return the results in order."""
        from threading import Barrier

        barrier = Barrier(len(work))

        def one(function: Callable[[], _T]) -> _T:
            barrier.wait(60)
            return function()

        with ThreadPoolExecutor(len(work)) as pool:
            return list(pool.map(one, work))

    def tidy(self) -> None:
        """End all jobs: cancel those that have not ended, and wait until they have; raise `Failed` if one does not."""
        for client in self._clients.values():
            rest = [*client.unfinished()]
            for job in rest:
                if self.contract.jobs.cancel is not None:
                    client.cancel(job)
            for job in rest:
                client.wait(job, seconds=self.contract.limits.terminal + self.contract.limits.recovery)

    def look_again(self) -> None:
        """Ask once more for all jobs, each noted in the history; raise `Failed` if there are jobs that nobody made."""
        for client in [*self._clients.values()]:
            for job in client.own:
                client.get(job)
        clients = self._clients.values()
        known = self._there.union(*((*client.own, *client.made) for client in clients))
        strange = self._listed() - known
        # A request without an answer may have been done.
        if self.contract.local and len(strange) > sum(client.unanswered for client in clients):
            raise Failed(f"{len(strange)} jobs are in the list whose creation was refused, or that no client asked for")

    def _listed(self) -> set[str]:
        if self.contract.jobs.list is None:
            return set()
        clients = [self.client(number) for number in range(len(self.contract.auth.tenants) or 1)]
        return {one.job for client in clients for one in client.list()}

    def residue(self) -> tuple[list[Leak], dict[str, str]]:
        """Return what the jobs left while the service is idle again, and what could not be seen in full."""
        assert self._idle is not None  # noqa: S101 - `begin` was called
        return self._idle.left(self._settle)

    def residue_after_stop(self) -> tuple[list[Leak], dict[str, str], list[str]]:
        """Stop the service; return what is left of it, what could not be seen in full, and what did not stop."""
        late = self.processes.stop_all()
        return *self._empty.left(self._settle), late

    def problems(self) -> list[str]:
        """Return what cannot be of all that clients saw, and which processes have ended by themselves."""
        ended = self.processes.ended()
        return [*self.history.problems(), *(f"{one}{self.processes.last_words()}" for one in ended)]


def answered(answer: Answer, statuses: Sequence[int], what: str) -> None:
    """Raise `Failed` unless the answer has one of these statuses."""
    if answer.status not in statuses:
        raise Failed(f"{what}: {answer}; expected {' or '.join(map(str, statuses))}")
