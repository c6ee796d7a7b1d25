"""Scenarios of races: the quota under bursts, and a cancel at any instant of a job's life."""

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from leakcheck.service.client import Client
from leakcheck.service.history import AT_WORK, ENDS, most_active
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.service.work import WORK_ENDS

__all__: list[str] = []

_REFUSED = (409, 429)
_LARGE = 200
_MEET = 3.0
"""Seconds for which a request waits until all of its burst have a connection."""
_LINGER = 0.5
"""Seconds for which an end must last: a worker that overwrites it does so soon."""


@scenario(
    "S3.7", "quota under a burst of 8 and of 200: never more unfinished jobs than the limit; the rest is 409 or 429"
)
def quota(stage: Stage) -> Any:
    """Create jobs at the same instant, several times: a race need not show at once."""
    if (limit := stage.contract.limits.active_per_user) is None:
        raise NotApplicable("the contract has no limits.active_per_user")
    if limit >= _LARGE:
        raise NotApplicable(f"limits.active_per_user is {limit}: a burst of {_LARGE} cannot exceed it")
    client = stage.client()
    counts: dict[str, Any] = {}
    rounds = {8: 6 if stage.full else 3, _LARGE: 1}
    for size, repeated in rounds.items():
        for _ in range(repeated):
            accepted, refused = _burst(stage, client, size, limit)
            counts[f"accepted of {size}"], counts[f"refused of {size}"] = accepted, refused
            stage.tidy()
    return counts | {"limit": limit}


def _burst(stage: Stage, client: Client, size: int, limit: int) -> tuple[int, int]:
    payloads = [client.payload("long") for _ in range(size)]
    barrier = threading.Barrier(size)

    def meet() -> None:
        # A service with a short queue makes no connection for some; the others go on.
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(_MEET)

    answers = stage.at_once([functools.partial(client.create, "long", one, gate=meet) for one in payloads])
    accepted = [job for _, job in answers if job]
    refused = Counter(answer.status for answer, job in answers if not job)
    _observe(client, accepted)
    jobs = stage.history.jobs
    most = most_active(jobs[job] for job in accepted)
    other = {status: count for status, count in refused.items() if status not in _REFUSED}
    found = {"accepted": len(accepted), "refused": sum(refused.values()), "most at once": most}
    check(most <= limit, f"burst of {size}: {most} unfinished jobs at once, limit {limit}", found)
    check(not other, f"burst of {size}: refused by {other}, not by 409 or 429", found)
    # A job that was refused although there was room: the others need all of it.
    check(len(accepted) >= min(limit, size), f"burst of {size}: only {len(accepted)} accepted, limit {limit}", found)
    if most < len(accepted):
        stage.unseen["quota"] = (
            f"{len(accepted) - most} of {len(accepted)} jobs had ended: jobs.payload.long is too short"
        )
    return len(accepted), sum(refused.values())


def _observe(client: Client, jobs: list[str]) -> None:
    if client.contract.jobs.list is not None:
        client.list()
    for job in jobs:
        client.get(job)


@scenario("S3.6", "cancel race: a cancel at any instant ends the job for good, and no work is done after it")
def cancel_race(stage: Stage) -> Any:
    """Cancel after delays that cover the life of a job until well after its start, in random order."""
    client = stage.client()
    tries = 120 if stage.full else 36
    ended: Counter[str] = Counter()
    with stage.runs() as runs:
        first = client.payload("long")
        job, started = _time_to_start(client, first)
        mark = runs.mark(first, job)
        jobs = [(job, mark, started)]
        for delay in _delays(stage, started, tries):
            if stage.stop():
                break
            payload = client.payload("long")
            job = _created(client, payload)
            jobs.append((job, runs.mark(payload, job), delay))
            time.sleep(delay)
            _cancel(stage, client, job)
        late = {job: _end(stage, client, job, delay) for job, _, delay in jobs}
        time.sleep(_LINGER)
        for job, _, delay in jobs:
            seen = client.get(job)
            ended[seen.place] += 1
            check(seen.place in ENDS, f"cancelled {delay * 1000:.1f} ms after its creation: {seen.state} again")
        time.sleep(WORK_ENDS)
        now = time.monotonic()
        at_work = [job for job, mark, _ in jobs if (last := runs.last(mark)) is not None and now - last < WORK_ENDS / 2]
        check(not runs.twice, f"{len(runs.twice)} jobs ran more than once")
        check(not at_work, f"{len(at_work)} jobs are still at work {WORK_ENDS:g} s after they were cancelled")
        if runs.why:
            stage.unseen["work"] = f"whether work goes on after a cancel: {runs.why} ({{unique}} in jobs.payload.long)"
    ms = sorted(late.values())
    return {"cancels": len(jobs), "ms to running": round(started * 1000), "slowest end ms": round(ms[-1]), **ended}


def _created(client: Client, payload: Any) -> str:
    """Create a job; those before it may have to end first."""
    until = time.monotonic() + client.contract.limits.terminal
    while True:
        answer, job = client.create("long", payload)
        if job:
            return job
        if answer.status not in _REFUSED or time.monotonic() > until:
            raise Failed(f"create a job after others were cancelled: {answer}; cancelled jobs still count")
        time.sleep(0.02)


def _cancel(stage: Stage, client: Client, job: str) -> None:
    """Cancel it, sometimes by two clients at once."""
    times = 2 if stage.random.random() < 0.25 else 1
    answers = stage.at_once([lambda: client.cancel(job)] * times)
    for answer in answers:
        # One that has ended already may be refused.
        check(answer.status in (200, 202, 204, 404, 409, 410), f"cancel job {job}: {answer}")
    # Of two at once, one may find it gone already.
    absent = [answer for answer in answers if answer.status == 404]
    check(len(absent) < (times if stage.contract.jobs.gone else 1), f"cancel job {job}: {absent[:1]}")


def _end(stage: Stage, client: Client, job: str, delay: float) -> float:
    began = time.monotonic()
    try:
        client.get(job)
        # One that was cancelled and runs again need not be waited for.
        check(not (problems := stage.history.problems()), "; ".join(problems[:1]))
        client.wait(job, seconds=stage.contract.limits.terminal)
    except Failed as failed:
        raise Failed(f"cancelled {delay * 1000:.1f} ms after its creation: {failed}") from None
    return (time.monotonic() - began) * 1000


def _time_to_start(client: Client, payload: Any) -> tuple[str, float]:
    """Return a job, cancelled once it ran, and how long an idle service takes to run it, in seconds."""
    began = time.monotonic()
    job = client.created("long", payload)
    client.wait(job, AT_WORK)
    took = time.monotonic() - began
    client.cancel(job)
    client.wait(job, seconds=client.contract.limits.terminal)
    return job, took


def _delays(stage: Stage, started: float, tries: int) -> Iterator[float]:
    """Yield delays from 0 to twice the time to the start, each from a stratum of its own, in random order."""
    longest = min(max(2 * started, 0.02), 2.0)
    strata = [*range(tries)]
    stage.random.shuffle(strata)
    for number in strata:
        yield longest * (number + stage.random.random()) / tries
