"""Clients of a service: requests in its arena's network, and the verbs of its contract, each noted in the history."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from leakcheck.service.contract import Call, Contract, Kind, Tenant, filled
from leakcheck.service.history import AT_WORK, ENDS, History, Seen
from leakcheck.service.network import Network
from leakcheck.service.scenario import Failed, NotApplicable, at

__all__ = ["Answer", "Client"]

_TIMEOUT = 20.0
_POLL = 0.03
_NO_LONGER = "gone"
_uniques = itertools.count(1)


class Answer(msgspec.Struct, frozen=True):
    """The answer to a request: status (0: none came; `error` says why), headers in lower case, body, seconds."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    seconds: float = 0
    error: str = ""
    sent: float = 0
    answered: float = 0

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __str__(self) -> str:
        text = self.error or self.body[:200].decode(errors="replace")
        return f"{self.status or 'no answer'}: {' '.join(text.split())}" if text else str(self.status)


class _Connection(http.client.HTTPConnection):
    def __init__(self, network: Network, host: str, port: int, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._network, self._seconds = network, timeout

    def connect(self) -> None:
        host = "127.0.0.1" if self.host == "localhost" else self.host
        self.sock = self._network.connect(host, self.port, self._seconds)


class Client:
    """A client of the user `tenant`, each of whose requests has a connection of its own."""

    def __init__(self, contract: Contract, network: Network, tenant: Tenant, history: History) -> None:
        self.contract, self.tenant = contract, tenant
        self._network, self._history = network, history
        self._places = contract.place_of_state
        self._lock = threading.Lock()
        self.own: list[str] = []
        """The jobs that it created."""
        self.unanswered = 0
        """Requests to create one that had no answer: the service may have done them."""
        self._made: set[str] = set()
        self._gone: dict[str, str] = {}
        """Jobs that may be no longer there, and the place of the end that this is."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that identify the user."""
        values = {"key": self.tenant.key, "tenant": self.tenant.name}
        return {name: str(filled(text, values)) for name, text in self.contract.auth.headers.items()}

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        auth: bool = True,
        timeout: float = _TIMEOUT,
        gate: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a request to `url`, or to that path of the service; never raise for what the service does.

        `gate` is called once there is a connection: the request is sent when it returns.
        """
        parts, base = urlsplit(url), urlsplit(self.contract.base_url)
        if parts.hostname and (parts.hostname, parts.port) != (base.hostname, base.port):
            web = urlsplit(self.contract.web.url) if self.contract.web is not None else None
            if web is None or (parts.hostname, parts.port) != (web.hostname, web.port):
                return Answer(0, error=f"{url}: another host than the contract names")
            base = web
        target = url[len(f"{parts.scheme}://{parts.netloc}") :] if parts.netloc else url
        sent = time.monotonic()
        connection = _Connection(self._network, base.hostname or "", base.port or 80, timeout)
        try:
            if gate is not None:
                connection.connect()
                gate()
                sent = time.monotonic()
            connection.request(method, target or "/", body, {**(self.headers if auth else {}), **(headers or {})})
            got = connection.getresponse()
            data, now = got.read(), time.monotonic()
            fields = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, fields, data, now - sent, sent=sent, answered=now)
        except (OSError, http.client.HTTPException) as error:
            now, why = time.monotonic(), f"{type(error).__name__}: {error}"
            return Answer(0, seconds=now - sent, error=why, sent=sent, answered=now)
        finally:
            connection.close()

    def call(self, call: Call, *, job: str = "", json_body: Any = None, **options: Any) -> Answer:
        """Make a request of the contract."""
        headers = dict(options.pop("headers", {}))
        body = None
        if json_body is not None:
            body, headers["Content-Type"] = json.dumps(json_body).encode(), "application/json"
        return self.request(call.method, call.path.replace("{id}", job), body=body, headers=headers, **options)

    def payload(self, kind: Kind, **more: str) -> Any:
        """Return the JSON that creates a job; raise `NotApplicable` if the contract has none of this kind."""
        jobs = self.contract.jobs
        if (found := jobs.payload.get(kind, jobs.create.json if kind == "short" else None)) is None:
            raise NotApplicable(f"the contract has no jobs.payload.{kind}")
        return filled(found, {"tenant": self.tenant.name, "unique": f"leakcheck-job-{next(_uniques)}"} | more)

    def create(self, kind: Kind = "short", json_body: Any = None, **options: Any) -> tuple[Answer, str]:
        """Create a job; return the answer, and the job's id, empty if it was not accepted."""
        body = self.payload(kind) if json_body is None else json_body
        answer = self.call(self.contract.jobs.create, json_body=body, **options)
        self.unanswered += not answer.status
        if answer.status not in self.contract.jobs.create.status:
            return answer, ""
        job = at(answer.json, self.contract.jobs.id)
        if job is None:
            raise Failed(f"create: the answer has no {self.contract.jobs.id!r}: {answer}")
        self._note(answer, str(job), answer.json, accepted=True)
        with self._lock:
            self._made.add(str(job))
            if str(job) not in self.own:
                self.own.append(str(job))
        return answer, str(job)

    def created(self, kind: Kind = "short", json_body: Any = None) -> str:
        """Create a job, and return its id; raise `Failed` if it is refused."""
        answer, job = self.create(kind, json_body)
        if not job:
            raise Failed(f"create a {kind} job: {answer}")
        return job

    def get(self, job: str) -> Seen:
        """Return what the service says of a job; raise `Failed` if it has no answer."""
        answer = self.call(self.contract.jobs.get, job=job)
        if answer.status == 404:
            return self._note(answer, job, None, lost=job not in self._gone)
        if answer.status not in self.contract.jobs.get.status:
            raise Failed(f"get job {job}: {answer}")
        return self._note(answer, job, answer.json)

    def document(self, job: str) -> Any:
        """Return the JSON of a job; raise `Failed` if there is none."""
        answer = self.call(self.contract.jobs.get, job=job)
        if answer.status not in self.contract.jobs.get.status or answer.json is None:
            raise Failed(f"get job {job}: {answer}")
        self._note(answer, job, answer.json)
        return answer.json

    def list(self) -> list[Seen]:
        """Return what the list has, each noted; raise `Failed` if there is no list in the answer."""
        if (call := self.contract.jobs.list) is None:
            raise NotApplicable("the contract has no jobs.list")
        answer = self.call(call)
        found = at(answer.json, self.contract.jobs.jobs)
        if answer.status not in call.status or not isinstance(found, list):
            raise Failed(f"list: {answer}")
        return [self._note(answer, str(at(one, self.contract.jobs.id)), one) for one in found]

    def cancel(self, job: str) -> Answer:
        """Cancel a job, and note what the answer says of it."""
        if (call := self.contract.jobs.cancel) is None:
            raise NotApplicable("the contract has no jobs.cancel")
        if self.contract.jobs.gone:
            self._gone[job] = "cancelled"
        answer = self.call(call, job=job)
        if answer.status in call.status and at(answer.json, self.contract.jobs.state) is not None:
            self._note(answer, job, answer.json)
        return answer

    def has(self, kind: Kind) -> bool:
        """Return whether the contract has jobs of this kind."""
        jobs = self.contract.jobs
        return kind in jobs.payload or (kind == "short" and jobs.create.json is not None)

    def whole(self, seconds: float = 30) -> Seen:
        """Create a job, and see it end as it must; raise `Failed`.

        It is a short one, or if the contract has none, a long one that is cancelled once it runs.
        """
        if self.has("short"):
            return self.wait(self.created("short"), ("succeeded",), seconds)
        job = self.created("long")
        self.wait(job, AT_WORK, seconds)
        self.cancel(job)
        return self.wait(job, ("cancelled",), self.contract.limits.terminal)

    def backend_ended(self) -> None:
        """Take it as right that its jobs are no longer there, if they end with the backend."""
        if self.contract.jobs.volatile:
            self._gone = dict.fromkeys(self.own, "failed") | self._gone

    def wait(self, job: str, places: Sequence[str] = ENDS, seconds: float = 30) -> Seen:
        """Poll a job until its state is in one of `places`; raise `Failed` after so many seconds, or at another end."""
        until = time.monotonic() + seconds
        while True:
            seen = self.get(job)
            if seen.place in places:
                return seen
            if seen.lost or not seen.place:
                what = "lost" if seen.lost else f"in state {seen.state!r}, which is not in the contract"
                raise Failed(f"job {job}: {what}")
            if seen.ended:
                raise Failed(f"job {job}: {seen.state}{self.reason(job)}, not {' or '.join(places)}")
            if time.monotonic() > until:
                raise Failed(f"job {job}: still {seen.state} after {seconds:g} s, not {' or '.join(places)}")
            time.sleep(_POLL)

    def reason(self, job: str) -> str:
        """Return the reason that a job has, in brackets; empty if it has none."""
        where = self.contract.jobs.reason
        if where and job in self._gone and self.get(job).state == _NO_LONGER:
            return f" ({_NO_LONGER})"
        found = at(self.document(job), where) if where else None
        return f" ({found})" if found else ""

    @property
    def made(self) -> frozenset[str]:
        """All jobs that it ever created."""
        with self._lock:
            return frozenset(self._made)

    def unfinished(self) -> Iterator[str]:
        """Yield its jobs that have not ended."""
        for job in [*self.own]:
            seen = self.get(job)
            if not seen.ended and not seen.lost:
                yield job

    def _note(self, answer: Answer, job: str, document: Any, *, accepted: bool = False, lost: bool = False) -> Seen:
        if document is None and answer.status == 404 and job in self._gone:
            state, place = _NO_LONGER, self._gone[job]
        else:
            state = "" if lost else str(at(document, self.contract.jobs.state))
            place = self._places.get(state, "")
        seen = Seen(job, self.tenant.name, state, place, answer.sent, answer.answered, accepted, lost)
        self._history.add(seen)
        return seen
