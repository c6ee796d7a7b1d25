"""Scenarios of input, ownership and signed URLs."""

import statistics
import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from leakcheck.service.client import Answer, Client
from leakcheck.service.contract import Kind
from leakcheck.service.history import AT_WORK
from leakcheck.service.scenario import Failed, NotApplicable, at, check, scenario
from leakcheck.service.stage import Stage, answered

__all__ = ["url_of"]

_SOON = 15.0
_LASTS = 2.0
"""Seconds for which a job that has ended is watched."""
_REFUSED = (400, 401, 403, 404, 410, 422)
_CLIENT_ERRORS = (400, 401, 403, 404, 405, 409, 413, 415, 422)


@scenario(
    "S3.1", "input contract: bad key, missing header, empty field, another user's name: refused, and nothing starts"
)
def input_contract(stage: Stage) -> Any:
    """Send what must be refused, and what no server may fall over."""
    client, refused = stage.client(), {}
    before = _count(client)
    for what, answer in _wrong(stage, client):
        check(answer.status in _CLIENT_ERRORS, f"{what}: {answer}; expected to be refused by 4xx")
        refused[what] = answer.status
    check(_count(client) == before, "a refused request started a job")
    answered(client.create(_kind(client))[0], stage.contract.jobs.create.status, "a right request after them")
    return refused


def _kind(client: Client) -> Kind:
    return "short" if client.has("short") else "long"


def _count(client: Client) -> int:
    return len(client.list()) if client.contract.jobs.list is not None else 0


def _wrong(stage: Stage, client: Client) -> Any:
    create, right = stage.contract.jobs.create, client.payload(_kind(client))
    for name, value in stage.contract.auth.headers.items():
        rest = {key: text for key, text in client.headers.items() if key != name}
        yield f"no {name}", client.call(create, json_body=right, auth=False, headers=rest)
        if "{key}" in value:
            wrong = rest | {name: "leakcheck-wrong-key"}
            yield f"wrong {name}", client.call(create, json_body=right, auth=False, headers=wrong)
    rules = stage.contract.input
    if rules is not None and isinstance(right, dict):
        for field in rules.required:
            yield f"empty {field}", client.call(create, json_body=right | {field: ""})
            yield f"no {field}", client.call(create, json_body={k: v for k, v in right.items() if k != field})
        if rules.user_field:
            mismatch = right | {rules.user_field: "leakcheck-somebody-else"}
            yield f"another {rules.user_field}", client.call(create, json_body=mismatch)
    as_json = {"Content-Type": "application/json"}
    for what, body in (("no JSON", b"{"), ("a list", b"[]"), ("no UTF-8", b'"\xff"'), ("deep", b"[" * 50_000)):
        yield what, client.request(create.method, create.path, body=body, headers=as_json)


@scenario("S3.4", "ownership: another user's job is 404, and neither text nor time tells that it exists")
def ownership(stage: Stage) -> Any:
    """Ask for, cancel and list the job of another user."""
    owner, other = stage.client(0), stage.client(1)
    job = owner.created("short")
    owner.wait(job)
    absent = _like(job)
    calls = [stage.contract.jobs.get] + ([stage.contract.jobs.cancel] if stage.contract.jobs.cancel else [])
    for call in calls:
        theirs, none = other.call(call, job=job), other.call(call, job=absent)
        check(theirs.status == 404, f"{call.method} another user's job: {theirs}; expected 404")
        same = theirs.body.replace(job.encode(), b"ID") == none.body.replace(absent.encode(), b"ID")
        check(theirs.status == none.status and same, f"another user's job: {theirs}; one that does not exist: {none}")
    if stage.contract.jobs.list is not None:
        check(job not in {one.job for one in other.list()}, "another user's job is in the list")
    check(owner.get(job).place == "succeeded", "another user's cancel changed the job")
    _running(stage, owner, other)
    _result(owner, other, job)
    rounds = 80 if stage.full else 40
    times: dict[str, list[float]] = {job: [], absent: []}
    for _ in range(rounds):
        for one, seconds in times.items():
            seconds.append(other.call(stage.contract.jobs.get, job=one).seconds)
    theirs_ms, none_ms = (statistics.median(one) * 1000 for one in times.values())
    noise = statistics.median([abs(one - statistics.median(times[absent])) for one in times[absent]]) * 1000
    # A difference that a client could use stands out of the scatter.
    telling = abs(theirs_ms - none_ms) > max(6 * noise, 2.0)
    check(not telling, f"time tells: {theirs_ms:.1f} ms for another user's job, {none_ms:.1f} ms for none")
    return {"another's ms": round(theirs_ms, 2), "none ms": round(none_ms, 2)}


def _running(stage: Stage, owner: Client, other: Client) -> None:
    """Let another user cancel a job that runs, and one that waits behind it."""
    if (call := stage.contract.jobs.cancel) is None or "long" not in stage.contract.jobs.payload:
        return
    running = owner.created("long")
    owner.wait(running, AT_WORK)
    waiting = owner.created("long") if stage.contract.limits.active_per_user != 1 else running
    for job in (running, waiting):
        theirs = other.call(call, job=job)
        check(theirs.status == 404, f"{call.method} another user's unfinished job: {theirs}; expected 404")
    time.sleep(0.2)
    for job in (running, waiting):
        seen = owner.get(job)
        check(not seen.ended and not seen.lost, f"another user's cancel: the job is {seen.state or 'lost'}")
        owner.cancel(job)
    owner.wait(running, seconds=stage.contract.limits.terminal)


def _result(owner: Client, other: Client, job: str) -> None:
    """Ask for the result of another user's job without its signature, by one's own key."""
    if owner.contract.results is None:
        return
    plain = urlunsplit(urlsplit(url_of(owner, job))._replace(query=""))
    answer = other.request("GET", plain)
    check(answer.status in _REFUSED, f"the result of another user's job, unsigned: {answer}; expected to be refused")


def _like(job: str) -> str:
    """Return an id that looks like `job` and does not exist."""
    swapped = [str((int(one) + 5) % 10) if one.isdigit() else one for one in job]
    return "".join(swapped) if swapped != [*job] else job[::-1]


@scenario("S3.10", "a job to its end: created, run, its result downloaded")
def whole_job(stage: Stage) -> Any:
    """Create a short job, wait for its end, and download its result if there is one."""
    client, began = stage.client(), time.monotonic()
    job = client.created("short")
    end = client.wait(job)
    check(end.place == "succeeded", f"a short job ended as {end.state}{client.reason(job)}")
    took = {"ms": round((time.monotonic() - began) * 1000)}
    while time.monotonic() - began < took["ms"] / 1000 + _LASTS:
        # An end is for good; the history tells.
        client.get(job)
        time.sleep(0.02)
    if stage.contract.results is None:
        return took
    answer = client.request("GET", url_of(client, job), auth=False)
    answered(answer, (200,), "download the result")
    return took | {"bytes": len(answer.body)}


def url_of(client: Client, job: str) -> str:
    """Return the URL of a job's result; raise `Failed` if it has none."""
    results = client.contract.results
    if results is None:
        raise NotApplicable("the contract has no results")
    url = at(client.document(job), results.url)
    if not isinstance(url, str) or not url:
        raise Failed(f"job {job} has ended, and has no {results.url}")
    return url


@scenario("S3.5", "signed URL: issued anew on each GET; expired, tampered and another job's are refused")
def signed_url(stage: Stage) -> Any:
    """Download by a right URL, and by ones that are not."""
    client = stage.client()
    if (results := stage.contract.results) is None:
        raise NotApplicable("the contract has no results")
    jobs = [client.created("short"), client.created("short")]
    for job in jobs:
        client.wait(job)
    first = url_of(client, jobs[0])
    answered(client.request("GET", first, auth=False), (200,), "a right URL")
    # Some sign whole seconds.
    time.sleep(1.1)
    second = url_of(client, jobs[0])
    check(first != second, "the URL of a result is the same in two GETs")
    answered(client.request("GET", second, auth=False), (200,), "a right URL")
    query = dict(parse_qsl(urlsplit(second).query))
    if results.signature_query not in query:
        raise Failed(f"the URL of a result has no {results.signature_query}: it is not signed")
    wrong = {
        "tampered": query | {results.signature_query: _changed(query[results.signature_query])},
        "unsigned": {name: value for name, value in query.items() if name != results.signature_query},
    }
    check(results.expires_query in query, f"the URL of a result has no {results.expires_query}: it never expires")
    number = query[results.expires_query]
    wrong["made expired"] = query | {results.expires_query: "1"}
    wrong["prolonged"] = query | {results.expires_query: f"{number}0"}
    statuses = {}
    other = urlsplit(url_of(client, jobs[1]))
    urls = {what: urlunsplit(urlsplit(second)._replace(query=urlencode(fields))) for what, fields in wrong.items()}
    urls["another job's"] = urlunsplit(other._replace(query=urlsplit(second).query))
    for what, url in urls.items():
        answer: Answer = client.request("GET", url, auth=False)
        check(answer.status in _REFUSED, f"{what} URL: {answer}; expected to be refused")
        statuses[what] = answer.status
    return statuses | _expired(stage, client, second, number)


def _expired(stage: Stage, client: Client, url: str, expires: str) -> dict[str, Any]:
    """Wait until a right URL has expired, if that is soon, and use it."""
    left = float(expires) - time.time() if expires.isdigit() else float("inf")
    if left > _SOON:
        stage.unseen["expired URL"] = f"no URL expires within {_SOON:g} s: an expired one was not tried"
        return {}
    time.sleep(max(0.0, left) + 1.1)
    answer = client.request("GET", url, auth=False)
    check(answer.status in _REFUSED, f"expired URL: {answer}; expected to be refused")
    return {"expired": answer.status}


def _changed(signature: str) -> str:
    return ("0" if signature[:1] != "0" else "1") + signature[1:]
