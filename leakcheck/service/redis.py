"""The scenario of a Redis that stops answering, dies and comes back."""

import itertools
import shutil
import signal
import time
from typing import Any

from leakcheck.service.client import Client
from leakcheck.service.history import AT_WORK
from leakcheck.service.scenario import NotApplicable, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.service.work import Runs

__all__: list[str] = []

_NAME = "redis"
_TIMES, _PAUSE, _LINGER = 5, 0.7, 2.0


def _prepare(stage: Stage) -> None:
    """Start the Redis of the contract before the service."""
    if (redis := stage.contract.redis) is None:
        raise NotApplicable("the contract has no redis")
    if shutil.which(redis.start[0]) is None:
        raise NotApplicable(f"no {redis.start[0]} on this machine: apt-get install redis-server")
    stage.processes.add(_NAME, redis.start, redis.env)


@scenario("S2.8", "Redis hangs, dies, stays away and comes back: no job is lost, none runs twice", prepare=_prepare)
def redis_away(stage: Stage) -> Any:
    """Create jobs in each of these phases, and see all of them end."""
    client = stage.client()
    jobs: dict[str, list[tuple[str, str]]] = {}
    # With one worker, each job that is queued twice runs twice: while another runs, a global cap hides it.
    for name in stage.processes.named("worker")[1:]:
        stage.processes.stop(name)
    with stage.runs() as runs:
        jobs["up"] = _created(client, runs, 2)
        server = stage.processes.running[_NAME]
        # It keeps its connections and says nothing more, as one that swaps does.
        server.send_signal(signal.SIGSTOP)
        jobs["hanging"] = _created(client, runs, 2)
        _ended(stage, client, jobs["hanging"], "while Redis hung")
        server.send_signal(signal.SIGCONT)
        blocker = client.created("long")
        client.wait(blocker, AT_WORK, seconds=stage.contract.limits.recovery)
        jobs["waiting"] = _created(client, runs, 2)
        stage.processes.kill(_NAME)
        jobs["away"] = _created(client, runs, 1)
        client.cancel(blocker)
        _ended(stage, client, [*jobs["waiting"], *jobs["away"]], "after Redis had died")
        stage.processes.start(_NAME)
        # A service may try a Redis that was away only from time to time.
        jobs["back"] = []
        for _ in range(_TIMES):
            time.sleep(_PAUSE)
            jobs["back"] += _created(client, runs, 1)
        _ended(stage, client, [*jobs["up"], *jobs["back"]], "once Redis was back")
        # What was queued a second time runs now, and its state may change.
        until = time.monotonic() + _LINGER
        while time.monotonic() < until:
            for job, _ in itertools.chain(*jobs.values()):
                client.get(job)
            time.sleep(0.05)
        check(not (problems := stage.history.problems()), "; ".join(problems[:2]))
        check(not runs.twice, f"{len(runs.twice)} jobs ran more than once")
    return {f"jobs while {phase}": len(some) for phase, some in jobs.items()}


def _created(client: Client, runs: Runs, count: int) -> list[tuple[str, str]]:
    made = []
    for _ in range(count):
        payload = client.payload("short")
        job = client.created("short", payload)
        made.append((job, runs.mark(payload, job)))
    return made


def _ended(stage: Stage, client: Client, jobs: list[tuple[str, str]], when: str) -> None:
    for job, _ in jobs:
        end = client.wait(job, seconds=stage.contract.limits.recovery)
        check(end.place == "succeeded", f"a job ended {when} as {end.state}{client.reason(job)}")
