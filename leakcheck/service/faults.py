"""Scenarios of faults and of operation: processes killed and restarted, a full disk, bursts, operators' commands."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leakcheck.service.client import Answer, Client
from leakcheck.service.contract import DATA, Role
from leakcheck.service.history import AT_WORK, ENDS
from leakcheck.service.residue import descriptors
from leakcheck.service.scenario import Failed, NotApplicable, at, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.service.work import Runs

__all__: list[str] = []

_SMALL = 48 << 20
_SPARE = 64 << 10
_SECOND = 0.6


@scenario("S1.5", "backend killed and restarted mid-run: it recovers, nothing is lost, nothing runs for ever or twice")
def backend_killed(stage: Stage) -> Any:
    """Kill the backend while a job runs and others wait, and start it again."""
    return _killed(stage, "backend")


@scenario("S2.7", "worker killed mid-run: its run is queued again or fails with a reason, and the next one runs")
def worker_killed(stage: Stage) -> Any:
    """Kill the workers while a job runs, and start them again."""
    return _killed(stage, "worker")


def _killed(stage: Stage, role: Role) -> Any:
    names, client = stage.processes.needed(role), stage.client()
    done = client.whole()
    with stage.runs() as runs:
        long = client.payload("long")
        running = client.created("long", long)
        if not (work := runs.mark(long, running)):
            raise NotApplicable(
                "jobs.payload.long has no {unique} word: nothing tells whether a running job is at work"
            )
        client.wait(running, AT_WORK)
        waiting, mark = _waiting(client, runs)
        for name in names:
            stage.processes.kill(name)
        time.sleep(stage.random.random() / 2)
        began = time.monotonic()
        for name in names:
            stage.processes.start(name)
        stage.processes.wait_ready(stage.contract.limits.recovery)
        ready = time.monotonic() - began
        check(client.get(done.job).place == done.place, f"a job that was {done.state} is not that any more")
        after = _after_restart(stage, client, running, lambda: runs.is_at_work(work))
        # A second run of it would begin now.
        time.sleep(_SECOND)
        client.cancel(running)
        client.wait(running, seconds=stage.contract.limits.terminal)
        if waiting:
            client.wait(waiting, ("succeeded",), stage.contract.limits.recovery)
        client.whole(stage.contract.limits.recovery)
        check(runs.count(mark) <= 1, f"the job that waited ran {runs.count(mark)} times")
        check(not runs.at_once, "a job ran twice at the same time")
        check(runs.count(work) <= 2, f"the job that ran when it was killed ran {runs.count(work)} times")
    return {"ms to ready": round(ready * 1000), "why": f"the run was {after}"}


def _waiting(client: Client, runs: Runs) -> tuple[str, str]:
    """Create a short job, if there are such, and return it with its mark."""
    if not client.has("short"):
        return "", ""
    payload = client.payload("short")
    job = client.created("short", payload)
    return job, runs.mark(payload, job)


def _after_restart(stage: Stage, client: Client, job: str, is_at_work: Callable[[], bool]) -> str:
    """Return what became of a job that ran; raise `Failed` if it is said to run, and no process does its work."""
    until = time.monotonic() + stage.contract.limits.recovery
    while time.monotonic() < until:
        seen = client.get(job)
        check(not seen.lost, f"job {job}: accepted, and lost by the restart")
        if seen.place == "failed":
            check(not stage.contract.jobs.reason or client.reason(job), f"job {job}: failed without a reason")
            return seen.state
        if seen.ended:
            return seen.state
        if seen.place in AT_WORK and is_at_work():
            return f"{seen.state} (at work)"
        time.sleep(0.05)
    raise Failed(f"job {job}: still {client.get(job).state} {stage.contract.limits.recovery:g} s after the restart")


@scenario("S1.6", "front end restarted mid-run: the run goes on, and the page shows it again")
def frontend_restarted(stage: Stage) -> Any:
    """Restart the front end while a job runs."""
    names, client = stage.processes.needed("frontend"), stage.client()
    job = client.created("long")
    client.wait(job, AT_WORK)
    for name in names:
        stage.restart(name, kill=False)
    seen = client.get(job)
    check(seen.place in AT_WORK, f"the run was {seen.state} after the front end was restarted")
    took = _web_is_back(stage, client, job)
    client.cancel(job)
    client.wait(job)
    return {"ms to the page": took}


def _web_is_back(stage: Stage, client: Client, job: str) -> int | None:
    web = stage.contract.web
    if web is None:
        return None
    began, answer = time.monotonic(), Answer(0)
    url = web.url + (web.job_path.replace("{id}", job) or "/")
    while time.monotonic() - began < stage.contract.limits.recovery:
        answer = client.request("GET", url)
        if answer.status == 200:
            return round((time.monotonic() - began) * 1000)
        time.sleep(0.05)
    raise Failed(f"the page of the job: {answer}")


@scenario("S2.9", "job recovery: after restarts at random instants nothing is lost, stuck or run twice")
def recovery(stage: Stage) -> Any:
    """Kill everything at an instant of a job's life, start it again, and follow all jobs to their ends."""
    client, names = stage.client(), [*stage.contract.processes]
    rounds, ends = (8 if stage.full else 3), dict.fromkeys(ENDS, 0)
    jobs: list[tuple[str, str]] = []
    with stage.runs() as runs:
        for _ in range(rounds):
            for _ in range(2):
                payload = client.payload("short")
                job = client.created("short", payload)
                jobs.append((job, runs.mark(payload, job)))
            time.sleep(stage.random.random() * 0.4)
            finished = {mark for job, mark in jobs if client.get(job).place == "succeeded"}
            before = {mark: runs.count(mark) for mark in finished}
            for name in reversed(names):
                stage.processes.kill(name)
            for name in names:
                stage.processes.start(name)
            stage.processes.wait_ready(stage.contract.limits.recovery)
            for job, _ in jobs:
                client.wait(job, seconds=stage.contract.limits.recovery)
            again = [mark for mark in finished if runs.count(mark) > before[mark]]
            check(not again, f"{len(again)} jobs that had succeeded ran again after the restart")
        check(not runs.at_once, f"{len(runs.at_once)} jobs ran twice at the same time")
        often = [mark for _, mark in jobs if runs.count(mark) > 1 + rounds]
        check(not often, f"{len(often)} jobs ran more often than the service was killed")
    for job, _ in jobs:
        seen = client.get(job)
        ends[seen.place] += 1
        if seen.place == "failed":
            check(not stage.contract.jobs.reason or client.reason(job), f"job {job}: failed without a reason")
    check(not ends["cancelled"], f"{ends['cancelled']} jobs were cancelled, and nobody had asked")
    return {"restarts": rounds, **ends}


@scenario(
    "S2.10", "disk full during output: a clear failure, the service answers, and works again with room", size=_SMALL
)
def disk_full(stage: Stage) -> Any:
    """Fill the file system of the service's directory while jobs run."""
    client = stage.client()
    kind = "fills-disk" if "fills-disk" in stage.contract.jobs.payload else "short"
    ballast = Path(f"/proc/{stage.arena.init}/root{DATA}/../leakcheck-ballast")
    statuses: dict[str, Any] = {}
    try:
        _fill(ballast)
        answer, job = client.create(kind)  # type: ignore[arg-type]
        check(answer.status, f"create a job with a full disk: {answer}")
        statuses["create"] = answer.status
        # What cannot be written cannot be told: a job may only end once there is room.
        time.sleep(2 if job else 0)
        health = client.request("GET", stage.contract.health.path, auth=False)
        check(health.status, f"health with a full disk: {health}")
    finally:
        ballast.unlink(missing_ok=True)
    stage.processes.wait_ready(stage.contract.limits.recovery)
    if job:
        seen = client.wait(job, seconds=stage.contract.limits.recovery)
        check(kind == "short" or seen.place == "failed", f"a job that filled the disk ended as {seen.state}")
        statuses["why"] = f"the job was {seen.state}"
    end = client.wait(client.created("short"), seconds=stage.contract.limits.recovery)
    check(end.place == "succeeded", f"with room again, a job ended as {end.state}{client.reason(end.job)}")
    return statuses


def _fill(ballast: Path) -> None:
    """Write a file until little room is left."""
    with ballast.open("wb", 0) as file:
        block = b"\0" * _SPARE
        try:
            for _ in range(2 * _SMALL // _SPARE):
                file.write(block)
        except OSError:
            file.truncate(max(0, file.tell() - _SPARE))


@scenario("S2.12", "smoke by command and by web: the set-up verifies itself, and the page answers")
def smoke(stage: Stage) -> Any:
    """Run the operator's check of the set-up, and get the page."""
    found: dict[str, Any] = {}
    if argv := stage.contract.operations.verify_setup:
        code, output = stage.processes.command(argv)
        check(code == 0, f"{argv[-1]}: exit {code}: {' '.join(output.split())[-200:]}")
        found["exit"] = code
    if (web := stage.contract.web) is not None:
        answer = stage.client().request("GET", web.url + "/")
        check(answer.status == 200 and b"<" in answer.body, f"page: {answer}")
        found["page bytes"] = len(answer.body)
    if not found:
        raise NotApplicable("the contract has neither operations.verify_setup nor web")
    return found


@scenario("S3.8", "bursts: 120 on health and 80 on the list, all answered")
def bursts(stage: Stage) -> Any:
    """Send many requests at once, and measure each."""
    client, health = stage.client(), stage.contract.health
    found = _burst("health", 120, lambda: client.request("GET", health.path, auth=False), [health.status])
    if (call := stage.contract.jobs.list) is not None:
        if client.has("short"):
            client.whole()
        else:
            client.wait(client.created("long"), AT_WORK)
        place = client.contract.jobs.jobs

        def _is_list(answer: Answer) -> bool:
            return isinstance(at(answer.json, place), list) and bool(at(answer.json, place))

        found |= _burst("list", 80, lambda: client.call(call), call.status, _is_list)
    return found


def _burst(
    name: str,
    size: int,
    ask: Callable[[], Answer],
    right: Sequence[int],
    is_right: Callable[[Answer], bool] = lambda _: True,
) -> dict[str, float]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(size) as pool:
        answers = [*pool.map(lambda _: ask(), range(size))]
    wrong = [str(one) for one in answers if one.status not in right or not is_right(one)]
    check(not wrong, f"{name}: {len(wrong)} of {size} failed: {'; '.join(wrong[:2])}")
    ms = sorted(one.seconds * 1000 for one in answers)
    p95 = statistics.quantiles(ms, n=20)[-1]
    times = {"p50": statistics.median(ms), "p95": p95, "max": ms[-1]}
    return {f"{name} ok": size} | {f"{name} {key} ms": round(value, 1) for key, value in times.items()}


@scenario("S3.9", "operations: the commands succeed, old jobs are cleaned up, none that is right is touched")
def operations(stage: Stage) -> Any:
    """Run the operator's commands beside a job that runs."""
    commands = stage.contract.operations
    given = {name: argv for name in ("fail_stale", "clean_old") if (argv := getattr(commands, name))}
    if not given:
        raise NotApplicable("the contract has neither operations.fail_stale nor operations.clean_old")
    client = stage.client()
    old = client.created("short")
    client.wait(old)
    running = client.created("long")
    client.wait(running, AT_WORK)
    waiting = client.created("short")
    time.sleep(commands.age)
    codes: dict[str, Any] = {}
    for name, argv in given.items():
        if name == "clean_old":
            stage.history.forget_ended()
        code, output = stage.processes.command(argv)
        check(code == 0, f"{name}: exit {code}: {' '.join(output.split())[-200:]}")
        codes[name] = code
        for what, job in (("ran", running), ("waited", waiting)):
            seen = client.get(job)
            check(not seen.ended and not seen.lost, f"{name}: the job that {what} is {seen.state or 'lost'}")
    client.own = [running, waiting]
    if commands.age and commands.clean_old:
        there = client.call(stage.contract.jobs.get, job=old).status
        check(there == 404, f"clean_old: a job that is older than {commands.age:g} s is still there: {there}")
        codes["old job"] = there
    client.cancel(running)
    client.wait(running)
    end = client.wait(waiting)
    check(end.place == "succeeded", f"the job that waited ended as {end.state}")
    return codes


@scenario("S3.12", "descriptors: those of the service do not grow with the requests")
def slope(stage: Stage) -> Any:
    """Count the descriptors of the idle service after equal batches of everything that clients do."""
    client, batch = stage.client(), (20 if stage.full else 5)
    counts: list[int] = []
    for _ in range(5):
        for _ in range(batch):
            client.get(client.whole().job)
            if stage.contract.jobs.list is not None:
                client.list()
            client.call(stage.contract.jobs.get, job="leakcheck-none")
        _cancelled(stage, client)
        counts.append(_idle(stage))
    # The first batch warms up: pools, caches, lazily opened files.
    steps = [late - early for early, late in itertools.pairwise(counts[1:])]
    grows = all(step > 0 for step in steps)
    check(not grows, f"descriptors grow with each batch of {batch} jobs: {', '.join(map(str, counts))}")
    return {"descriptors": counts[-1], "batches": len(counts), "jobs each": batch}


def _cancelled(stage: Stage, client: Client) -> None:
    if stage.contract.jobs.cancel is None or "long" not in stage.contract.jobs.payload:
        return
    for _ in range(2):
        job = client.created("long")
        client.wait(job, AT_WORK)
        client.cancel(job)
        client.wait(job, seconds=stage.contract.limits.terminal)


def _idle(stage: Stage) -> int:
    """Return the least number of descriptors in a moment without requests: connections take a while to go."""
    least = 1 << 30
    for _ in range(8):
        time.sleep(0.04)
        least = min(least, descriptors(stage.arena.pids()))
    return least
