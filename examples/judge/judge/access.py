"""Who asks: the key names the tenant, and the header must name the same one."""

import hmac
from typing import Annotated, NewType

from fastapi import Header, HTTPException, Request, Security
from fastapi.security import APIKeyHeader
from starlette.types import ASGIApp, Receive, Scope, Send

from judge.store import RefusedError

Tenant = NewType("Tenant", str)
_MOST_JSON = 1 << 20
"""Bytes of a body that is no chunk of an upload."""
_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="401 if it is missing or wrong")


def tenant(
    request: Request,
    key: Annotated[str | None, Security(_key_header)] = None,
    x_user_id: Annotated[str | None, Header(description="400 if missing, 403 if the key is another tenant's")] = None,
) -> Tenant:
    """Return the tenant of the request; raise `RefusedError`."""
    found = None
    for known, name in request.app.state.settings.keys.items():  # all of them, so that time tells nothing
        if hmac.compare_digest(known.encode(), (key or "").encode()):
            found = name
    if found is None:
        raise RefusedError(401, "X-API-Key: missing or wrong")
    if not x_user_id:
        raise RefusedError(400, "X-User-ID: missing")
    if x_user_id != found:
        raise RefusedError(403, "X-User-ID: the key is of another tenant")
    return Tenant(found)


class SmallBodies:
    """Refuses large bodies before they are read, except the chunks of uploads, which are counted as they come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/v1/uploads/"):
            await self._app(scope, receive, send)
            return
        size = 0

        async def counted() -> dict:  # type: ignore[type-arg]
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > _MOST_JSON:
                raise HTTPException(413, f"at most {_MOST_JSON} bytes")
            return dict(message)

        await self._app(scope, counted, send)
