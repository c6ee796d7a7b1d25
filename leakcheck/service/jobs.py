"""Scenarios of jobs: many at once, clients that go, refreshing, two users, the end of a cancelled one."""

import functools
import json
import signal
import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

from leakcheck.service.client import Client
from leakcheck.service.history import AT_WORK, Seen, most_at_once, spans
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.service.work import WORK_ENDS

__all__: list[str] = []

_REFUSED = (409, 429)
_REFRESHES = 5
"""As the document says."""


@scenario("S1.2", "back-to-back runs: each is accepted or cleanly refused, and each accepted one ends")
def back_to_back(stage: Stage) -> Any:
    """Create more short jobs than the limit, without waiting."""
    client = stage.client()
    wanted = 2 * (stage.contract.limits.active_per_user or 5) + 2
    answers = [client.create("short") for _ in range(wanted)]
    accepted = [job for _, job in answers if job]
    wrong = [str(answer) for answer, job in answers if not job and answer.status not in _REFUSED]
    check(not wrong, f"refused otherwise than by {_REFUSED}: {'; '.join(wrong[:3])}")
    check(accepted, "no run was accepted")
    ends = [client.wait(job, seconds=60).place for job in accepted]
    check(set(ends) == {"succeeded"}, f"runs ended as {', '.join(sorted({*ends}))}")
    return {"created": wanted, "accepted": len(accepted), "refused": wanted - len(accepted)}


@scenario("S1.3", "client gone mid-run: the run goes on, and its state is there for the next client")
def client_gone(stage: Stage) -> Any:
    """Abort the connection of a client that polls, and one that has only sent its request."""
    client = stage.client()
    job = client.created("long")
    client.wait(job, AT_WORK)
    for _ in range(5):
        _abort(stage, client, job)
    time.sleep(0.3)
    seen = client.get(job)
    check(seen.place in AT_WORK, f"after its client had gone the run was {seen.state}")
    short = client.created("short") if client.has("short") else ""
    _abort(stage, client, short or job)
    client.cancel(job)
    if not short:
        return {"clients gone": 6}
    client.wait(short)
    create, body = stage.contract.jobs.create, json.dumps(client.payload("short")).encode()
    for _ in range(3):
        stage.break_off(client, create.method, create.path, body, {"Content-Type": "application/json"})
    return {"clients gone": 9} | _asked_again(stage, client)


def _asked_again(stage: Stage, client: Client) -> dict[str, Any]:
    """Create a job again and again, as a client does that had no answer, and expect one job."""
    if not (header := stage.contract.jobs.idempotency):
        return {}
    payload, headers = client.payload("short"), {header: f"leakcheck-{stage.random.getrandbits(64):x}"}
    create = functools.partial(client.create, "short", payload, headers=headers)
    made = {job for _, job in [create(), *stage.at_once([create] * 4)] if job}
    check(len(made) == 1, f"five requests with one {header} made {len(made)} jobs")
    client.wait(made.pop())
    return {"asked again": 5}


def _abort(stage: Stage, client: Client, job: str) -> None:
    """Send a request and reset the connection, as a browser that is killed does."""
    base = urlsplit(stage.contract.base_url)
    connection = stage.network.connect(base.hostname or "", base.port or 80, 5)
    call = stage.contract.jobs.get
    head = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())
    connection.sendall(f"{call.method} {call.path.replace('{id}', job)} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    # A linger time of zero: the connection is reset (socket(7)).
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@scenario("S1.4", "refresh torture while running, stalled and failed: one state, and no ghost run")
def refresh(stage: Stage) -> Any:
    """Ask for a job and the list again and again, one after the other and at once."""
    client = stage.client()
    times, done = (20 if stage.full else _REFRESHES), []
    for kind, place in (("long", "running"), ("fails", "failed")):
        if kind not in stage.contract.jobs.payload:
            continue
        job = client.created(kind)
        client.wait(job, AT_WORK if place == "running" else (place,))
        _refresh(stage, client, job, place, times)
        done.append(place)
        if place == "running":
            client.cancel(job)
            client.wait(job)
    if not done:
        raise NotApplicable("the contract has neither jobs.payload.long nor jobs.payload.fails")
    done += ["stalled"] if "long" in stage.contract.jobs.payload and _stalled(stage, client, times) else []
    if "failed" in done and (last := client.reason(job)) == "" and stage.contract.jobs.reason:
        raise Failed(f"job {job} failed without a reason{last}")
    return {"refreshes in each state": 2 * times, "why": ", ".join(done)}


def _stalled(stage: Stage, client: Client, times: int) -> bool:
    """Refresh a run whose workers are stopped, as on a machine that swaps; return whether it ever was stalled."""
    workers = [stage.processes.running[name] for name in stage.processes.named("worker")]
    if not workers or not stage.contract.states.stalled:
        return False
    job = client.created("long")
    client.wait(job, AT_WORK)
    try:
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        until = time.monotonic() + stage.contract.limits.terminal
        while (stalled := client.get(job).place) in AT_WORK and stalled != "stalled" and time.monotonic() < until:
            time.sleep(0.05)
        if stalled == "stalled":
            _refresh(stage, client, job, "stalled", times)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    client.cancel(job)
    client.wait(job, seconds=stage.contract.limits.recovery)
    return stalled == "stalled"


def _refresh(stage: Stage, client: Client, job: str, place: str, times: int) -> None:
    before = {one.job for one in client.list()} if stage.contract.jobs.list is not None else set()
    seen: list[Seen] = [client.get(job) for _ in range(times)]
    seen += stage.at_once([lambda: client.get(job)] * times)
    web = stage.contract.web
    if web is not None and web.job_path:
        page = functools.partial(client.request, "GET", web.url + web.job_path.replace("{id}", job))
        answers = [page() for _ in range(times)] + stage.at_once([page] * times)
        wrong = [str(answer) for answer in answers if answer.status != 200]
        check(not wrong, f"{len(wrong)} of {len(answers)} refreshes of the page failed: {'; '.join(wrong[:1])}")
    others = {one.place for one in seen} - {place, "stalled" if place == "running" else place}
    check(not others, f"refreshing a run that was {place} showed {', '.join(sorted(others)) or 'nothing'}")
    if stage.contract.jobs.list is not None:
        ghosts = {one.job for one in client.list()} - before
        check(not ghosts, f"refreshing started {len(ghosts)} ghost runs")


@scenario("S2.1", "two users at once: each has its own jobs, and all of them end")
def two_users(stage: Stage) -> Any:
    """Create jobs of two users at the same instants."""
    clients = [stage.client(0), stage.client(1)]
    for _ in range(4 if stage.full else 2):
        made = stage.at_once([lambda one=one: one.created("short") for one in clients])  # type: ignore[misc]
        check(made[0] != made[1], f"both users were given the job {made[0]}")
        for client, job in zip(clients, made, strict=True):
            end = client.wait(job, seconds=60)
            check(end.place == "succeeded", f"a short job ended as {end.state}")
    if stage.contract.jobs.list is not None:
        for client, other in (clients, clients[::-1]):
            mixed = {one.job for one in client.list()} & {*other.own}
            check(not mixed, f"the list of {client.tenant.name} has jobs of {other.tenant.name}")
    return {"jobs": sum(len(one.own) for one in clients)}


@scenario("S2.6", "cancel mid-run: the run ends, no work goes on, and the next one runs")
def cancel_running(stage: Stage) -> Any:
    """Cancel a running job, look at its processes, cancel it again, and cancel one that has ended."""
    client = stage.client()
    with stage.runs() as runs:
        payload = client.payload("long")
        job = client.created("long", payload)
        mark = runs.mark(payload, job)
        client.wait(job, AT_WORK)
        time.sleep(0.2)
        began = time.monotonic()
        answer = client.cancel(job)
        check(200 <= answer.status < 300, f"cancel: {answer}")
        end = client.wait(job, seconds=stage.contract.limits.terminal)
        took = time.monotonic() - began
        check(end.place == "cancelled", f"the cancelled run ended as {end.state}")
        if mark:
            runs.wait_idle(mark, WORK_ENDS)
            check(not runs.is_at_work(mark), f"its processes still run {WORK_ENDS:g} s after it was cancelled")
    again = client.cancel(job)
    check(0 < again.status < 500, f"cancel again: {again}")
    ended = client.whole(stage.contract.limits.terminal + 30)
    client.cancel(ended.job)
    state = client.get(ended.job)
    check(state.place == ended.place, f"a cancel changed a job that was {ended.state} to {state.state}")
    return {"ms to the end": round(took * 1000), "why": runs.why}


@scenario("S2.11", "global cap: never more runs at work than it, with two users; the next starts when one has ended")
def global_cap(stage: Stage) -> Any:
    """Create jobs of two users at once, and look at their states and at the processes."""
    if (cap := stage.contract.limits.concurrency) is None:
        raise NotApplicable("the contract has no limits.concurrency")
    clients = [stage.client(0), stage.client(1)]
    each = min(cap + 1, stage.contract.limits.active_per_user or cap + 1)
    if 2 * each <= cap:
        raise NotApplicable(
            f"limits.active_per_user lets two users have no more than {2 * each} jobs, and {cap} may run"
        )
    jobs = []
    with stage.runs() as runs:
        for client in clients:
            payloads = [client.payload("long") for _ in range(each)]
            made = stage.at_once([lambda one=one, client=client: client.created("long", one) for one in payloads])  # type: ignore[misc]
            jobs += [(client, job, runs.mark(one, job)) for job, one in zip(made, payloads, strict=True)]
        until = time.monotonic() + (4 if stage.full else 1.5)
        while time.monotonic() < until:
            for client, job, _ in jobs:
                client.get(job)
            time.sleep(0.02)
        most = most_at_once(spans(stage.history.jobs[job]) for _, job, _ in jobs)
        check(most <= cap, f"{most} jobs ran at a time, cap {cap}")
        check(runs.most <= cap, f"{runs.most} jobs had processes at a time, cap {cap}")
        until = time.monotonic() + stage.contract.limits.recovery
        while jobs:
            if not (running := [one for one in jobs if one[0].get(one[1]).place in AT_WORK]):
                check(time.monotonic() < until, f"{len(jobs)} jobs wait, and none of them runs")
                continue
            for client, job, _ in running:
                client.cancel(job)
                client.wait(job, seconds=stage.contract.limits.terminal)
            jobs, until = [one for one in jobs if one not in running], time.monotonic() + stage.contract.limits.recovery
        check(runs.most <= cap, f"{runs.most} jobs had processes at a time, cap {cap}")
        return {"cap": cap, "most in running": most, "most with processes": runs.most, "why": runs.why}
