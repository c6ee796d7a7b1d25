"""A Redis that jobs queue in: it answers, keeps what it is given, and does not evict it."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from leakcheck.preflight.outcome import Outcome, State

_DEFAULT = "redis://127.0.0.1:6379/0"
_SECONDS = 3


def check(_: Path) -> Iterator[Outcome]:
    """Yield what is found of the Redis that ``REDIS_URL`` names, or of one at the usual place."""
    try:
        import redis
    except ImportError:
        yield _outcome(
            "client", "skip", "the Python client is not installed", "pip install 'sandbox-leakcheck[preflight]'"
        )
        return
    given = os.environ.get("REDIS_URL", "")
    url = given or _DEFAULT
    try:
        client = redis.Redis.from_url(url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, retry=None)
    except ValueError as error:
        yield _outcome("server", "fail", f"REDIS_URL: {error}", "write redis://HOST:PORT/DATABASE")
        return
    with client:
        try:
            version = client.info("server")["redis_version"]
        except redis.RedisError as error:
            yield (
                _no_answer(url, str(error))
                if given
                else _outcome(
                    "server",
                    "skip",
                    f"REDIS_URL is not set, and nobody answers at {_place(url)}",
                    "apt-get install redis-server, or set REDIS_URL",
                )
            )
            return
        yield _outcome("server", "pass", f"{_place(url)} answers: version {version}")
        if not given:  # somebody else's, for all we know
            return
        try:
            yield _kept(client)
            yield _policy(client)
        except redis.RedisError as error:
            fix = "give the user of REDIS_URL the rights of a queue: SET, GET, DEL, CONFIG GET"
            yield _outcome("use", "fail", str(error), fix)


def _no_answer(url: str, error: str) -> Outcome:
    host = _place(url)
    return _outcome(
        "server",
        "fail",
        f"{host} does not answer: {error}",
        f"start it, and try: redis-cli -u redis://{host} ping",
        "check host, port, password and firewall; a service should fall back to another queue meanwhile",
    )


def _kept(client: Any) -> Outcome:
    key = f"leakcheck:preflight:{uuid.uuid4().hex}"
    client.set(key, "kept", ex=10)
    found = client.get(key)
    client.delete(key)
    if found != b"kept":
        return _outcome("use", "fail", "a key that was set is not there", "see INFO memory: is maxmemory reached?")
    return _outcome("use", "pass", "a key is kept")


def _policy(client: Any) -> Outcome:
    told = client.config_get("maxmemory*")
    if told.get("maxmemory", "0") != "0" and told.get("maxmemory-policy") != "noeviction":
        found = f"maxmemory-policy {told['maxmemory-policy']}: a full Redis silently drops queued jobs"
        return _outcome("eviction", "fail", found, "redis-cli config set maxmemory-policy noeviction")
    return _outcome("eviction", "pass", "queued jobs are not evicted")


def _place(url: str) -> str:
    """Return host and port, without the password."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.path}:{parts.port or 6379}"


def _outcome(step: str, state: State, found: str, *fix: str) -> Outcome:
    return Outcome("redis", step, state, found, [*fix])
