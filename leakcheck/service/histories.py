"""The scenario of random histories of what clients and operators do, each checked against the model of jobs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from leakcheck.service.client import Client
from leakcheck.service.contract import Role
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.service.work import Runs

__all__ = ["ACTIONS"]

ACTIONS = (
    "create",
    "long",
    "fails",
    "other",
    "poll",
    "list",
    "cancel",
    "cancel-first",
    "pause",
    "kill:worker",
    "kill:backend",
)
"""What a history is made of. ``other`` creates a job of another user; ``cancel`` is of the last job of a user."""
_REFUSED = (409, 429)
_LONGEST = 8
_KILLED: tuple[Role, ...] = ("worker", "backend")
_SECONDS = {"quick": 12.0, "full": 90.0}
"""How long histories are searched, and made short."""


@scenario("S3.11", "random histories of create, poll, cancel and kill: each is possible in the model of jobs")
def histories(stage: Stage) -> Any:
    """Search for a history that cannot be, and make it short."""
    if stage.actions:
        if unknown := [one for one in stage.actions if one not in ACTIONS]:
            raise Failed(f"--history: unknown action {unknown[0]!r}; one of {', '.join(ACTIONS)}")
        _replay(stage, stage.actions)
        return {"actions": len(stage.actions)}
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        raise NotApplicable("hypothesis is not installed (extra service)") from None
    possible = _possible(stage)
    found: list[tuple[Sequence[str], Failed]] = []
    tried, until = 0, time.monotonic() + _SECONDS[stage.profile]

    @hypothesis.seed(stage.seed)
    @hypothesis.settings(
        max_examples=200 if stage.full else 40,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=[*hypothesis.HealthCheck],
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategies.lists(strategies.sampled_from(possible), min_size=1, max_size=_LONGEST))
    def search(actions: list[str]) -> None:
        nonlocal tried
        # What is cut off is no failure; hypothesis may call that flaky.
        if time.monotonic() > until or stage.stop():
            return
        tried += 1
        try:
            _replay(stage, actions)
        except Failed as failed:
            found.append((actions, failed))
            stage.history.restart()
            raise

    try:
        search()
    except Exception:
        if not found:
            raise
    if found:
        actions, failed = min(found, key=lambda one: len(one[0]))
        text = " ".join(actions)
        raise Failed(f"{text}: {failed}", {"histories": tried}, history=text)
    return {"histories": tried}


def _possible(stage: Stage) -> list[str]:
    """Return the actions that the contract has, those of each client several times: they are quick."""
    jobs, processes, client = stage.contract.jobs, stage.processes, stage.client()
    found = ["poll", "pause"]
    found += ["create", "create"] if client.has("short") else []
    found += ["list"] if jobs.list is not None else []
    found += ["cancel", "cancel", "cancel-first"] if jobs.cancel is not None else []
    found += [kind for kind in ("long", "fails") if kind in jobs.payload]
    found += ["other"] if len(stage.contract.auth.tenants) > 1 and client.has("short") else []
    # Without a way to cancel it, a long job delays all that follow.
    found = [one for one in found if one != "long" or jobs.cancel is not None]
    return found + [f"kill:{role}" for role in _KILLED if processes.named(role)]


def _replay(stage: Stage, actions: Sequence[str]) -> None:
    """Do what the history says, let all jobs end, and check what was seen; raise `Failed`."""
    with stage.runs() as runs:
        doing = _Doing(stage, runs)
        for action in actions:
            doing.one(action)
        for client in doing.clients:
            for job in [*client.unfinished()]:
                if stage.contract.jobs.cancel is not None:
                    client.cancel(job)
            for job in client.own:
                client.wait(job, seconds=stage.contract.limits.recovery)
        kills = sum(action.startswith("kill:") for action in actions)
        often = [mark for mark in runs.twice if runs.count(mark) > 1 + kills]
        check(not often, f"{len(often)} jobs ran more often than they were killed")
    problems = stage.history.problems()
    check(not problems, "; ".join(problems[:2]))


class _Doing:
    """One history that is being made."""

    def __init__(self, stage: Stage, runs: Runs) -> None:
        self._stage, self._runs = stage, runs
        self._cancelled = (200, 202, 204, 409, 410, *((404,) if stage.contract.jobs.gone else ()))
        self.clients = [stage.client(0)]
        for client in self.clients:
            client.own = []
        self._verbs: dict[str, Callable[[], None]] = {
            "create": lambda: self._create(0, "short"),
            "long": lambda: self._create(0, "long"),
            "fails": lambda: self._create(0, "fails"),
            "other": self._other,
            "poll": lambda: self._each(Client.get),
            "list": self._list,
            "cancel": lambda: self._cancel(-1),
            "cancel-first": lambda: self._cancel(0),
            "pause": lambda: time.sleep(0.05 + stage.random.random() / 4),
        }

    def one(self, action: str) -> None:
        """Do one action."""
        if action.startswith("kill:"):
            for name in self._stage.processes.needed("worker" if action == "kill:worker" else "backend"):
                self._stage.restart(name)
        else:
            self._verbs[action]()

    def _create(self, number: int, kind: Any) -> None:
        client = self.clients[number]
        payload = client.payload(kind)
        answer, job = client.create(kind, payload)
        check(job or answer.status in _REFUSED, f"create: {answer}")
        if job:
            self._runs.mark(payload, job)

    def _other(self) -> None:
        if len(self.clients) < 2:
            self.clients.append(self._stage.client(1))
            self.clients[1].own = []
        self._create(1, "short")

    def _list(self) -> None:
        for client in self.clients:
            client.list()

    def _each(self, verb: Callable[[Client, str], Any]) -> None:
        for client in self.clients:
            for job in client.own:
                verb(client, job)

    def _cancel(self, which: int) -> None:
        for client in self.clients:
            if client.own:
                answer = client.cancel(client.own[which])
                check(answer.status in self._cancelled, f"cancel: {answer}")
