"""Resumable uploads by tus 1.0.0 (tus.io) with its extensions creation, checksum, termination and expiration.

The offset in the database is the truth. A chunk is received into a file without a name, checked, copied to its place,
and then counted, if the offset is still the one it was sent for. What a kill leaves beyond it, the next chunk
overwrites.
"""

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from judge.access import Tenant, tenant
from judge.defects import planted
from judge.settings import Settings
from judge.store import RefusedError, Store

_VERSION = "1.0.0"
_ALGORITHMS = ("sha256", "sha1")
_MOST_OPEN = 50
"""Uploads that a tenant may have; each takes up to the limit of the disk."""
_Owner = Annotated[Tenant, Depends(tenant)]


def router(store: Store, settings: Settings) -> APIRouter:
    """Return the routes below /v1/uploads."""
    routes = APIRouter(prefix="/v1/uploads", tags=["uploads"])

    @routes.options("", include_in_schema=False)
    def options() -> Response:
        return _answer(204, _abilities(settings))

    @routes.post("", status_code=201, response_class=Response, responses=_told(400, 413, 429))
    def create(request: Request, owner: _Owner) -> Response:
        """Begin an upload of `Upload-Length` bytes; its address is in `Location`."""
        _same_version(request)
        length = _number(request, "Upload-Length")
        if length > settings.max_upload and not planted("upload-unlimited"):
            raise RefusedError(413, f"at most {settings.max_upload} bytes")
        upload_id = uuid.uuid4().hex
        expires = time.time() + settings.upload_lifetime
        metadata = request.headers.get("Upload-Metadata", "")[:4096]
        with store.change() as db:
            count = db.execute("SELECT count(*) FROM uploads WHERE tenant = ?", (owner,)).fetchone()[0]
            if count >= _MOST_OPEN:
                raise RefusedError(429, f"{count} uploads are there; use or end some")
            db.execute(
                "INSERT INTO uploads (id, tenant, length, metadata, expires) VALUES (?, ?, ?, ?, ?)",
                (upload_id, owner, length, metadata, expires),
            )
        return _answer(
            201, {"Location": f"/v1/uploads/{upload_id}", "Upload-Offset": "0", "Upload-Expires": _date(expires)}
        )

    @routes.head("/{upload_id}", response_class=Response, responses=_told(404))
    def head(upload_id: str, request: Request, owner: _Owner) -> Response:
        """Tell how much has arrived."""
        _same_version(request)
        row = _row(store, upload_id, owner)
        told = {"Upload-Offset": str(row["offset"]), "Upload-Length": str(row["length"]), "Cache-Control": "no-store"}
        if row["metadata"]:
            told["Upload-Metadata"] = row["metadata"]
        return _answer(200, told)

    @routes.patch(
        "/{upload_id}", status_code=204, response_class=Response, responses=_told(400, 404, 409, 413, 415, 460)
    )
    async def patch(upload_id: str, request: Request, owner: _Owner) -> Response:
        """Append a chunk at `Upload-Offset`; 409 with the right one if it is another, 460 if the checksum is wrong."""
        _same_version(request)
        if request.headers.get("Content-Type") != "application/offset+octet-stream":
            raise RefusedError(415, "Content-Type: application/offset+octet-stream")
        row = await run_in_threadpool(_row, store, upload_id, owner)
        return await _patch(store, settings, row, request)

    @routes.delete("/{upload_id}", status_code=204, response_class=Response, responses=_told(404, 409))
    def end(upload_id: str, request: Request, owner: _Owner) -> Response:
        """End the upload and remove what has arrived."""
        _same_version(request)
        _row(store, upload_id, owner)
        with store.change() as db:
            if not db.execute("DELETE FROM uploads WHERE id = ? AND job IS NULL", (upload_id,)).rowcount:
                raise RefusedError(409, "a job uses it; it is removed when the job has ended")
        if not planted("upload-left"):
            (settings.uploads / upload_id).unlink(missing_ok=True)
        return _answer(204)

    return routes


async def _patch(store: Store, settings: Settings, row: Any, request: Request) -> Response:
    at, checksum = _number(request, "Upload-Offset"), _checksum(request)
    if at != row["offset"] and not planted("chunk-twice"):
        return _wrong_offset(row["offset"])
    most = row["length"] - row["offset"] if not planted("upload-unlimited") else 1 << 40
    with _received(settings, row["id"]) as file:
        right = await _receive(request, file, most, checksum)
        if not right and not planted("checksum-ignored"):
            raise RefusedError(460, "the checksum is another one")
        return await run_in_threadpool(_append, store, settings, row, at, file)


def _append(store: Store, settings: Settings, row: Any, at: int, chunk: IO[bytes]) -> Response:
    """Put the chunk to its place and count it, if it is still the one that is expected."""
    with (settings.uploads / row["id"]).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        try:
            offset = _row(store, row["id"], row["tenant"])["offset"]
        except RefusedError:  # it was ended meanwhile: the file is new, and nobody's
            (settings.uploads / row["id"]).unlink(missing_ok=True)
            raise
        if at != offset:
            if not planted("chunk-twice"):
                return _wrong_offset(offset)
            at = offset
        file.truncate(at)  # what a kill left after the bytes that were counted
        chunk.seek(0)
        shutil.copyfileobj(chunk, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
        end, expires = file.tell(), time.time() + settings.upload_lifetime
        with store.change() as db:
            counted = db.execute(
                "UPDATE uploads SET offset = ?, length = max(length, ?), expires = ? WHERE id = ? AND offset = ?",
                (end, end, expires, row["id"], offset),
            ).rowcount
        if not counted:  # it was ended meanwhile
            (settings.uploads / row["id"]).unlink(missing_ok=True)
            raise RefusedError(404, "no such upload")
    return _answer(204, {"Upload-Offset": str(end), "Upload-Expires": _date(expires)})


@contextlib.contextmanager
def _received(settings: Settings, upload_id: str) -> Iterator[IO[bytes]]:
    if planted("upload-left"):
        with tempfile.NamedTemporaryFile(prefix=f"{upload_id}.", dir=settings.uploads, delete=False) as file:
            yield file
    else:
        with tempfile.TemporaryFile(dir=settings.uploads) as file:  # without a name: a kill leaves nothing
            yield file


async def _receive(request: Request, file: IO[bytes], most: int, checksum: tuple[str, bytes] | None) -> bool:
    """Write the body to the file; return whether it has the checksum. Without one, a part of it counts as well."""
    digest = hashlib.new(checksum[0] if checksum else "sha256")
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise RefusedError(413, f"at most {most} more bytes")
            digest.update(part)
            await run_in_threadpool(file.write, part)
    except ClientDisconnect:
        pass
    return checksum is None or digest.digest() == checksum[1]


def _row(store: Store, upload_id: str, owner: str) -> Any:
    with store.read() as db:
        row = db.execute("SELECT * FROM uploads WHERE id = ? AND tenant = ?", (upload_id, owner)).fetchone()
    if row is None:
        raise RefusedError(404, "no such upload")
    return row


def _checksum(request: Request) -> tuple[str, bytes] | None:
    text = request.headers.get("Upload-Checksum")
    if text is None:
        return None
    algorithm, _, digest = text.partition(" ")
    if algorithm not in _ALGORITHMS:
        raise RefusedError(400, f"Upload-Checksum: {' or '.join(_ALGORITHMS)}, and the digest in Base64")
    try:
        return algorithm, base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "Upload-Checksum: the digest is not Base64") from error


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RefusedError(400, f"{header}: write a number of bytes")
    return int(text)


def _same_version(request: Request) -> None:
    if request.headers.get("Tus-Resumable") != _VERSION:
        raise RefusedError(412, f"Tus-Resumable: {_VERSION}")


def _abilities(settings: Settings) -> dict[str, str]:
    return {
        "Tus-Version": _VERSION,
        "Tus-Extension": "creation,checksum,termination,expiration",
        "Tus-Checksum-Algorithm": ",".join(_ALGORITHMS),
        "Tus-Max-Size": str(settings.max_upload),
    }


def _answer(status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": _VERSION, **(headers or {})})


def _wrong_offset(offset: int) -> Response:
    return _answer(409, {"Upload-Offset": str(offset)})


def _date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def _told(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "refused"} for status in (*statuses, 401, 403, 412)}
