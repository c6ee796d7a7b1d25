"""A contract: the description of a job service, as a TOML file (`Contract`).

Strings may hold placeholders: ``{data}`` (a fresh directory), ``{python}`` (our interpreter) and ``{contract_dir}``
(the directory of the file) in processes, operations and needed programs; ``{key}`` and ``{tenant}`` in headers;
``{tenant}`` and ``{unique}`` (a word that no other job has) in what creates a job; ``{upload}`` in the one that takes
an upload; ``{id}`` in paths.
"""

import ipaddress
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from leakcheck._native import read_input
from leakcheck.errors import UsageError
from leakcheck.targets.faults import Faults, describe, faults_of_types
from leakcheck.toml_lines import lines_of

__all__ = ["DATA", "Call", "Contract", "Process", "Tenant", "filled", "load_contract", "parse_contract"]

DATA = "/tmp/leakcheck-service/data"  # noqa: S108 - the arena's own
"""The service's directory in its arena."""
Role: TypeAlias = Literal["backend", "worker", "frontend", "redis", "other"]
Kind: TypeAlias = Literal["short", "long", "fails", "fills-disk", "leaves-process", "upload"]
"""The kinds of jobs that scenarios need."""
_LOOPBACK = ("localhost", "ip6-localhost")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_MOST_SECONDS = 600
_MOST = {"active_per_user": 1000, "concurrency": 100, "upload_bytes": 1 << 30}
"""What scenarios can reach: so many jobs and bytes are sent."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Needs(_Table, frozen=True):
    """What must be there, or the service cannot run here: `programs`, by name or path."""

    programs: list[str] = []


class Process(_Table, frozen=True):
    """A process of the service: its argv, what it is, and what is added to its environment."""

    start: list[str]
    role: Role = "other"
    env: dict[str, str] = {}


class Health(_Table, frozen=True):
    """How to ask whether the service is ready, and how many seconds it may take to be."""

    path: str
    status: int = 200
    timeout: float = 20


class Tenant(_Table, frozen=True):
    """A user of the service, with what identifies it."""

    name: str
    key: str = ""


class Auth(_Table, frozen=True):
    """The headers of every request, and the users."""

    headers: dict[str, str] = {}
    tenants: list[Tenant] = []


class Call(_Table, frozen=True):
    """A request, and the statuses that mean that it was done."""

    path: str
    method: str = "GET"
    json: Any = None
    status: list[int] = msgspec.field(default_factory=lambda: [200])


class Jobs(_Table, frozen=True):
    """How to handle jobs.

    `idempotency` is the header by which a client that asks again gets the same job.

    `id`, `state` and `reason` are where they stand in the answer, dotted if deeper; `jobs` is where the list stands in
    the answer to `list`, empty if the answer is the list. `payload` has the JSON that creates each kind of job; that of
    a short one is the ``json`` of `create`.

    `gone` is whether a cancelled job is no longer there, and `volatile` whether jobs end with the backend; then a 404
    is their end. `id_in_arguments` is whether the process that does the work has the job's id in its arguments.
    """

    create: Call
    get: Call
    list: Call | None = None
    cancel: Call | None = None
    id: str = "id"
    state: str = "state"
    jobs: str = "jobs"
    reason: str = ""
    idempotency: str = ""
    gone: bool = False
    volatile: bool = False
    id_in_arguments: bool = False
    payload: dict[Kind, Any] = {}


class States(_Table, frozen=True):
    """The names of the states: waiting, at work, late, and the three ends."""

    queued: list[str] = []
    running: list[str] = []
    stalled: list[str] = []
    succeeded: list[str] = []
    failed: list[str] = []
    cancelled: list[str] = []


class Limits(_Table, frozen=True):
    """What the service grants: unfinished jobs of a user, jobs at work at a time, bytes of an upload; seconds to react.

    `terminal` is how soon a cancelled job must have ended, `recovery` how soon all is well again after a restart, and
    `stop` how long a process of the service may take to end after SIGTERM.
    """

    active_per_user: int | None = None
    concurrency: int | None = None
    upload_bytes: int | None = None
    terminal: float = 10
    recovery: float = 30
    stop: float = 10


class Uploads(_Table, frozen=True):
    """Where uploads go: one POST, or the resumable protocol tus 1.0.0."""

    path: str
    protocol: Literal["tus", "plain"] = "tus"


class Results(_Table, frozen=True):
    """Where the URL of a result stands in a job, and the query fields of one that is signed."""

    url: str
    expires_query: str = "expires"
    signature_query: str = "signature"


class Ssrf(_Table, frozen=True):
    """The field of a job for the URL that the service fetches."""

    field: str


class Input(_Table, frozen=True):
    """Fields that a job must have, and the one that must name the user of the request."""

    required: list[str] = []
    user_field: str = ""


class Operations(_Table, frozen=True):
    """The commands of an operator; `age` is the seconds after whose end a job is old, if that is short here."""

    verify_setup: list[str] = []
    fail_stale: list[str] = []
    clean_old: list[str] = []
    age: float = 0


class Web(_Table, frozen=True):
    """The web page: its URL, the path of a job's page, and the selector of the state there, in ``data-state``."""

    url: str
    job_path: str = ""
    state: str = ""


class OpenApi(_Table, frozen=True):
    """Where the OpenAPI document is."""

    path: str


class Redis(_Table, frozen=True):
    """A Redis that the service can use: the command that starts it, and what its processes are told by environment."""

    start: list[str]
    env: dict[str, str] = {}


class Data(_Table, frozen=True):
    """Patterns of what the service may keep below ``{data}`` once its jobs have ended; the rest there is residue."""

    keeps: list[str] = []


class Contract(_Table, frozen=True):
    """The description of a job service. What is missing makes the scenarios that need it not applicable."""

    name: str
    base_url: str
    processes: dict[str, Process]
    health: Health
    jobs: Jobs
    states: States
    allow_hosts: list[str] = []
    needs: Needs = Needs()
    auth: Auth = Auth()
    limits: Limits = Limits()
    uploads: Uploads | None = None
    results: Results | None = None
    ssrf: Ssrf | None = None
    input: Input | None = None
    operations: Operations = Operations()
    web: Web | None = None
    openapi: OpenApi | None = None
    redis: Redis | None = None
    data: Data = Data()

    @property
    def place_of_state(self) -> dict[str, str]:
        """Each state of the contract → the field of `States` that has it."""
        return {state: field for field in States.__struct_fields__ for state in getattr(self.states, field)}

    @property
    def local(self) -> bool:
        """Whether the service is on the loopback of its arena."""
        return _is_loopback(_host_of(self.base_url))

    def values(self, path: Path) -> dict[str, str]:
        """Return the placeholders of processes, for the contract in the file at `path`."""
        import sys

        return {"data": DATA, "python": sys.executable, "contract_dir": str(path.absolute().parent)}

    def missing(self, path: Path) -> list[str]:
        """Return the programs that the service needs and this machine lacks, for the contract in the file at `path`."""
        programs: list[str] = filled(self.needs.programs, self.values(path))
        return [name for name in programs if shutil.which(name, path=_search()) is None]


def _search() -> str:
    import os

    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def filled(value: Any, values: dict[str, str]) -> Any:
    """Return `value` with the placeholders in all its strings replaced; unknown ones stay as they are."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {name: filled(inner, values) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, values) for inner in value]
    return value


def load_contract(path: Path) -> Contract:
    """Read the contract in the file at `path`; the message of a `UsageError` has all its faults, each with its line."""
    return parse_contract(read_input("contract", path, most=1 << 20), path)


def parse_contract(text: str, path: Path) -> Contract:
    """Return the checked contract in the TOML `text` of the file at `path`; raise `UsageError` as `load_contract`."""
    try:
        table = msgspec.toml.decode(text)
        faults = _faults_of_types(table)
        found = None if faults else msgspec.convert(table, type=Contract)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"contract {path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"contract {path}: nested too deeply") from error
    if found is not None:
        for field, problem in _problems(found):
            faults.setdefault(field, []).append(problem)
    if faults:
        raise UsageError(f"contract {path}: {describe(faults, lines_of(text))}")
    assert found is not None  # noqa: S101 - there is no fault
    return found


def _faults_of_types(table: dict[str, Any]) -> Faults:
    faults = faults_of_types(Contract, table)
    processes = table.get("processes")
    if isinstance(processes, dict):
        faults = {field: wrong for field, wrong in faults.items() if not field.startswith("processes")}
        for name, process in processes.items():
            at = f"processes.{name}"
            inner = faults_of_types(Process, process, f"{at}.") if isinstance(process, dict) else {at: ["not a table"]}
            faults |= inner
    for place, kind in _OPTIONAL.items():
        if isinstance(value := _at(table, place), dict):
            faults = {field: wrong for field, wrong in faults.items() if f"{field}.".find(f"{place}.") != 0}
            faults |= faults_of_types(kind, value, f"{place}.")
    return faults


_OPTIONAL: dict[str, type[msgspec.Struct]] = {
    "jobs.list": Call,
    "jobs.cancel": Call,
    "uploads": Uploads,
    "results": Results,
    "ssrf": Ssrf,
    "input": Input,
    "web": Web,
    "openapi": OpenApi,
    "redis": Redis,
}
"""Tables that may be missing: their type is a union, in which not each fault is found."""


def _at(table: Any, place: str) -> Any:
    for part in place.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    return table


def _problems(contract: Contract) -> Iterator[tuple[str, str]]:
    """Yield each contradiction of `contract`: the field, and what is wrong."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", contract.name):
        yield "name", f"{contract.name!r} must be lower-case letters, digits and dashes"
    urls = {"base_url": contract.base_url} | ({"web.url": contract.web.url} if contract.web is not None else {})
    for field, url in urls.items():
        yield from ((field, problem) for problem in _problems_of_url(url, contract.allow_hosts))
    if not contract.processes and contract.local:
        yield "processes", "is empty; give the commands that start the service in its arena"
    for name, process in contract.processes.items():
        if not process.start or not process.start[0]:
            yield f"processes.{name}.start", "is empty; give an argv"
    yield from _problems_of_numbers(contract)
    if contract.redis is not None and not contract.redis.start:
        yield "redis.start", "is empty; give an argv"
    yield from _problems_of_jobs(contract)
    for field, path in _paths(contract):
        # What is no path of the service may lead to another one.
        if not re.fullmatch(r"/(?!/)[!-~]*", path):
            yield field, f"{path!r}: start it with one /, and escape what is not printable"
    for name, value in contract.auth.headers.items():
        if not re.fullmatch(r"[!-9;-~]+", name) or not value.isprintable():
            yield "auth.headers", f"{name!r}: {value!r} cannot be a header"
    names = [tenant.name for tenant in contract.auth.tenants]
    if len({*names}) < len(names):
        yield "auth.tenants", "two have the same name"


def _problems_of_numbers(contract: Contract) -> Iterator[tuple[str, str]]:
    # Any of them may be nan.
    for field, seconds in (
        ("health.timeout", contract.health.timeout),
        ("limits.terminal", contract.limits.terminal),
        ("operations.age", contract.operations.age or 1),
        ("limits.recovery", contract.limits.recovery),
        ("limits.stop", contract.limits.stop),
    ):
        if not 0 < seconds <= _MOST_SECONDS:
            yield field, f"{seconds}: give seconds above 0, at most {_MOST_SECONDS}"
    for field in _MOST:
        if (limit := getattr(contract.limits, field)) is not None and not 1 <= limit <= _MOST[field]:
            yield (
                f"limits.{field}",
                f"{limit}: give at least 1" if limit < 1 else f"{limit}: give at most {_MOST[field]}",
            )
    if not 100 <= contract.health.status <= 599:
        yield "health.status", f"{contract.health.status}: no status of HTTP"


def _paths(contract: Contract) -> Iterator[tuple[str, str]]:
    yield "health.path", contract.health.path
    for name in ("create", "get", "list", "cancel"):
        if (call := getattr(contract.jobs, name)) is not None:
            yield f"jobs.{name}.path", call.path
    for name in ("uploads", "openapi"):
        if (table := getattr(contract, name)) is not None:
            yield f"{name}.path", table.path
    if contract.web is not None and contract.web.job_path:
        yield "web.job_path", contract.web.job_path


def _problems_of_jobs(contract: Contract) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for field in States.__struct_fields__:
        for state in getattr(contract.states, field):
            if state in seen:
                yield f"states.{field}", f"{state!r} is also in {seen[state]}"
            seen[state] = field
    # A job that cannot end by itself is cancelled, and then gone.
    for field in ("running", *(() if contract.jobs.gone else ("succeeded",))):
        if not getattr(contract.states, field):
            yield f"states.{field}", "is empty; without it no job is known to run or to end"
    for name in ("get", "cancel"):
        call = getattr(contract.jobs, name)
        if call is not None and "{id}" not in call.path:
            yield f"jobs.{name}.path", f"{call.path!r} has no {{id}}"
    for name in ("create", "get", "list", "cancel"):
        call = getattr(contract.jobs, name)
        if call is not None and not re.fullmatch(r"[A-Z]+", call.method):
            yield f"jobs.{name}.method", f"{call.method!r}: give one such as POST"
        if call is not None and (not call.status or not all(200 <= status < 400 for status in call.status)):
            yield f"jobs.{name}.status", f"{call.status}: give statuses of success, from 200 to 399"


def _problems_of_url(url: str, allowed: list[str]) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        yield f"{url!r}: {error}"
        return
    if parts.scheme != "http" or not host or not port or url != f"http://{parts.netloc}" or "@" in parts.netloc:
        yield f"{url!r}: give http://HOST:PORT, and no more"
    elif not _is_loopback(host) and host not in allowed:
        yield f"{host} is outside of loopback: load goes to no stranger's address; allow_hosts may name it"


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_loopback(host: str) -> bool:
    if host in _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
