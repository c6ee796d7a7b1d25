"""A contract to start from, filled in from an OpenAPI document as far as that tells."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from leakcheck._native import read_input
from leakcheck.errors import UsageError
from leakcheck.service.contract import parse_contract

__all__ = ["draft"]

_TIMEOUT = 10
_MOST = 8 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_JOBS = re.compile(r"job|run|task|submission|kernel|execution|build", re.IGNORECASE)
_HEALTH = re.compile(r"health|ping|status|ready|live|version", re.IGNORECASE)


def draft(document: str | None) -> str:
    """Return a contract as TOML; `document` is the file or loopback URL of an OpenAPI document.

    It raises `UsageError` if there is no such document.
    """
    found, base = ({}, "http://127.0.0.1:8000") if document is None else _read(document)
    paths = found.get("paths", {})
    if document is not None and not isinstance(paths, dict):
        raise UsageError(f"--openapi {document}: not an OpenAPI document: it has no paths")
    collection = next((path for path in _with(paths, "post") if _JOBS.search(path) and "{" not in path), "/jobs")
    one = next((path for path in _with(paths, "get") if path.startswith(f"{collection}/{{")), f"{collection}/{{id}}")
    one = re.sub(r"\{[^}]*\}", "{id}", one, count=1)
    health = next((path for path in _with(paths, "get") if _HEALTH.search(path) and "{" not in path), "/health")
    status = next((code for code in _responses(paths, collection, "post") if code.startswith("2")), "201")
    title = (
        re.sub(r"[^a-z0-9]+", "-", str(found.get("info", {}).get("title", "service")).lower()).strip("-") or "service"
    )
    text = _DRAFT.format(
        name=title,
        base=base,
        health=json.dumps(health),
        collection=json.dumps(collection),
        one=json.dumps(one),
        status=status,
        body=_body(found, paths, collection),
    )
    parse_contract(text, Path("draft"))
    return text


def _read(document: str) -> tuple[dict[str, Any], str]:
    """Return the document, and the base URL of its service."""
    parts = urlsplit(document)
    if parts.scheme in ("http", "https"):
        if parts.hostname not in _LOOPBACK:
            raise UsageError(f"--openapi {document}: not on this machine's loopback; save it to a file")
        try:
            with urllib.request.urlopen(document, timeout=_TIMEOUT) as answer:  # noqa: S310 - http on loopback
                text = answer.read(_MOST).decode()
        except (OSError, ValueError) as error:
            raise UsageError(f"--openapi {document}: {error}") from error
        base = f"http://127.0.0.1:{parts.port or 80}"
    else:
        text, base = read_input("OpenAPI document", document, most=_MOST), "http://127.0.0.1:8000"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--openapi {document}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--openapi {document}: not an OpenAPI document")
    return found, base


def _with(paths: dict[str, Any], method: str) -> Iterator[str]:
    yield from (path for path, item in paths.items() if isinstance(item, dict) and method in item)


def _responses(paths: dict[str, Any], path: str, method: str) -> list[str]:
    item = paths.get(path, {}).get(method, {})
    return [str(code) for code in item.get("responses", {})] if isinstance(item, dict) else []


def _body(document: dict[str, Any], paths: dict[str, Any], path: str) -> str:
    """Return an inline table with the required fields of what creates a job."""
    content = paths.get(path, {}).get("post", {}).get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if isinstance(reference := schema.get("$ref"), str):
        schema = document
        for part in reference.removeprefix("#/").split("/"):
            schema = schema.get(part, {}) if isinstance(schema, dict) else {}
    values = {"string": '"…"', "integer": "1", "number": "1", "boolean": "true", "array": "[]", "object": "{}"}
    fields = schema.get("properties", {}) if isinstance(schema, dict) else {}
    required = schema.get("required", []) if isinstance(schema, dict) else []
    pairs = [f"{json.dumps(name)} = {values.get(fields.get(name, {}).get('type'), chr(34) * 2)}" for name in required]
    return f"{{ {', '.join(pairs)} }}" if pairs else "{}"


_DRAFT = """\
# A contract for `leakcheck service --contract FILE`. Every section up to [states] is needed; without the others, the
# scenarios that need them are not applicable.
name = "{name}"
base_url = "{base}"

[needs]
programs = ["python3"]

# Any number of processes, started in this order; role: backend, worker, frontend, redis or other.
# {{data}} is a fresh directory, {{python}} our interpreter, {{contract_dir}} the directory of this file.
[processes.api]
start = ["{{python}}", "-m", "your.service"]
role = "backend"

[processes.api.env]
DATA = "{{data}}"

[health]
path = {health}

# [auth]
# headers = {{ X-API-Key = "{{key}}", X-User-ID = "{{tenant}}" }}
# tenants = [{{ name = "alice", key = "…" }}, {{ name = "bob", key = "…" }}]

[jobs]
id = "id"
state = "state"
jobs = "jobs"
create = {{ method = "POST", path = {collection}, status = [{status}], json = {body} }}
list = {{ path = {collection} }}
get = {{ path = {one} }}
cancel = {{ method = "DELETE", path = {one} }}

# The JSON that creates a job of each kind: one that runs for 20 s or more, and one that fails. A word {{unique}} in the
# arguments of the process that does the work lets leakcheck see runs that go on after a cancel, or run twice.
# [jobs.payload]
# long = {{ }}
# fails = {{ }}

[states]
queued = ["queued"]
running = ["running"]
succeeded = ["completed"]
failed = ["failed"]
cancelled = ["cancelled"]

# [limits]
# active_per_user = 5
# concurrency = 1

# What the service may keep below {{data}} once its jobs have ended.
[data]
keeps = ["*.db*"]
"""
