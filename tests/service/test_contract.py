"""A contract is read with all its faults in one answer."""

from pathlib import Path

import pytest
from services import STANDIN

from leakcheck.errors import UsageError
from leakcheck.service.contract import parse_contract

TEXT = STANDIN.read_text()


def faults(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_contract(text, Path("contract.toml"))
    return str(caught.value)


def test_each_fault_has_its_field_and_line() -> None:
    text = TEXT.replace('role = "backend"', 'rol = "backend"').replace("active_per_user = 5", 'active_per_user = "5"')
    text = text.replace('get = { path = "/jobs/{id}" }', "").replace("cancel = { method", "cancel = { metod")
    told = faults(text)
    assert "line 9: processes.api.rol: unknown field; one of start, role, env" in told
    assert "limits.active_per_user: Expected `int | null`, got `str`" in told
    assert "jobs.get: missing" in told
    assert "jobs.cancel.metod: unknown field; one of path, method, json, status" in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("127.0.0.1:8901", "example.org:80", "line 2: base_url: example.org is outside of loopback"),
        ('"http://127.0.0.1:8901"', '"127.0.0.1"', "give http://HOST:PORT"),
        ('queued = ["queued"]', 'queued = ["running"]', "states.running: 'running' is also in queued"),
        ('get = { path = "/jobs/{id}" }', 'get = { path = "/jobs" }', "jobs.get.path: '/jobs' has no {id}"),
        ("concurrency = 1", "concurrency = 0", "limits.concurrency: 0: give at least 1"),
        ("active_per_user = 5", "active_per_user = 1000000000", "limits.active_per_user: 1000000000: give at most"),
        ("status = [201]", "status = []", "jobs.create.status: []: give statuses of success"),
        ("status = [201]", "status = [201, 429]", "jobs.create.status: [201, 429]: give statuses of success"),
        ('path = "/health"', 'path = "/health"\nstatus = 0', "health.status: 0: no status of HTTP"),
        ("terminal = 2", "terminal = nan", "limits.terminal: nan: give seconds"),
        ('path = "/health"', 'path = "/health"\ntimeout = -1', "health.timeout: -1.0: give seconds"),
        ('name = "standin"', 'name = "Stand In"', "line 1: name: 'Stand In' must be lower-case"),
        ('"bob"', '"alice"', "auth.tenants: two have the same name"),
        ('succeeded = ["completed"]', "succeeded = []", "states.succeeded: is empty"),
        (":8901", ":8901/api", "'http://127.0.0.1:8901/api': give http://HOST:PORT, and no more"),
        (":8901", ":0", "'http://127.0.0.1:0': give http://HOST:PORT"),
        ("127.0.0.1:8901", "me@127.0.0.1:8901", "give http://HOST:PORT, and no more"),
        ('path = "/health"', 'path = "health"', "health.path: 'health': start it with one /"),
        ('path = "/uploads"', 'path = "//example.org/"', "uploads.path: '//example.org/': start it with one /"),
        (
            "[limits]",
            '[openapi]\npath = "@example.org/"\n[limits]',
            "openapi.path: '@example.org/': start it with one /",
        ),
        ('"DELETE"', '"DELETE /"', "jobs.cancel.method: 'DELETE /': give one such as POST"),
        ('"{key}"', '"{key}\\n"', "auth.headers: 'X-API-Key': '{key}\\n' cannot be a header"),
        ("name = ", "name == ", "contract.toml"),
    ],
)
def test_a_contradiction_is_told(old: str, new: str, told: str) -> None:
    assert told in faults(TEXT.replace(old, new, 1))


def test_a_host_may_be_allowed() -> None:
    text = TEXT.replace("127.0.0.1:8901", "10.0.0.7:80").replace("\n[needs]", 'allow_hosts = ["10.0.0.7"]\n[needs]', 1)
    assert not parse_contract(text, Path("contract.toml")).local
