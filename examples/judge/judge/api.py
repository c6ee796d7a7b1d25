"""The HTTP API. What it accepts is in the database before it answers."""

import contextlib
import hmac
import json
import logging
import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from judge import recovery, sandbox, uploads, urls
from judge.access import SmallBodies, Tenant, tenant
from judge.defects import planted
from judge.pending import Pending
from judge.settings import Settings
from judge.store import Job, RefusedError, Store

_log = logging.getLogger("judge")
_Owner = Annotated[Tenant, Depends(tenant)]
_Query = Annotated[str | None, Header(max_length=200)]


class Submission(BaseModel):
    """A program to run; `upload` or `input_url` becomes its stdin."""

    model_config = ConfigDict(extra="forbid")
    workflow: Literal["run"]
    language: Literal["sh", "c", "cpp", "java", "python"] = "sh"
    source: str = Field("", max_length=200_000)
    upload: str | None = Field(None, max_length=64)
    input_url: str | None = Field(None, max_length=2000)
    user_id: str | None = Field(None, max_length=200)


class JobAnswer(BaseModel):
    id: str
    state: Literal["queued", "running", "stalled", "completed", "failed", "cancelled"]
    progress: float
    reason: str | None
    result_url: str | None
    created: float
    started: float | None
    ended: float | None


class Jobs(BaseModel):
    jobs: list[JobAnswer]


class Told(BaseModel):
    detail: Any


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Told} for status in statuses}


class Signer:
    """Makes and checks the signed query of a result's URL."""

    def __init__(self, secret: bytes, lifetime: float) -> None:
        self._secret, self._lifetime = secret, lifetime
        self._made: dict[str, str] = {}

    def url(self, job_id: str) -> str:
        """Return an URL that nobody was given before."""
        if planted("url-reused") and job_id in self._made:
            return self._made[job_id]
        expires, nonce = math.ceil(time.time() + self._lifetime), secrets.token_urlsafe(8)
        url = (
            f"/v1/results/{job_id}?expires={expires}&nonce={nonce}&signature={self._signature(job_id, expires, nonce)}"
        )
        if planted("url-reused"):
            self._made[job_id] = url
        return url

    def check(self, job_id: str, expires: int, nonce: str, signature: str) -> None:
        """Raise `RefusedError` if it was tampered with or has expired."""
        right = hmac.compare_digest(
            self._signature(job_id, expires, nonce), signature.encode("ascii", "replace").decode()
        )
        if not right and not planted("signature-ignored"):
            raise RefusedError(403, "the signature is wrong")
        if expires < time.time() and not planted("expired-url"):
            raise RefusedError(403, "the URL has expired; get the job again for a new one")

    def _signature(self, job_id: str, expires: int, nonce: str) -> str:
        return hmac.new(self._secret, f"{job_id}\n{expires}\n{nonce}".encode(), "sha256").hexdigest()


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it recovers what the last one left before it serves."""
    store, pending, box = Store(settings.data), Pending(settings.redis), sandbox.of(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if planted("rerun-finished"):
            store.rerun_finished()
        recovery.remove_garbage(store, settings)
        ended = threading.Event()
        sweeper = threading.Thread(target=_sweep, args=(ended, store, settings, box, pending))
        sweeper.start()
        try:
            yield
        finally:
            ended.set()
            sweeper.join()

    app = FastAPI(title="judge", version="1", lifespan=lifespan)
    app.state.settings = settings
    app.add_middleware(SmallBodies)
    _handle_errors(app)
    app.include_router(uploads.router(store, settings))

    app.include_router(_routes(store, settings, pending))
    return app


def _routes(store: Store, settings: Settings, pending: Pending) -> APIRouter:
    routes, signer = APIRouter(tags=["jobs"]), Signer(store.secret(), settings.url_lifetime)

    def answer(job: Job) -> JobAnswer:
        url = signer.url(job.id) if job.result else None
        return JobAnswer.model_validate({**vars(job), "result_url": url})

    @routes.get("/health")
    def health() -> dict[str, str]:
        """Tell that the API serves."""
        return {"status": "ok"}

    @routes.post("/v1/jobs", status_code=201, responses=_refusals(400, 401, 403, 409, 413, 429, 503))
    def create(body: Submission, owner: _Owner, idempotency_key: _Query = None) -> JobAnswer:
        """Queue a submission."""
        _check(body, owner)
        if planted("fd-left"):
            os.open(os.devnull, os.O_RDONLY)
        spec = body.model_dump(exclude={"user_id"})
        job, new = store.create(owner, spec, idempotency_key, settings.max_active)
        if new:
            pending.put(job.id)
        return answer(job)

    @routes.get("/v1/jobs", responses=_refusals(400, 401, 403, 503))
    def list_jobs(owner: _Owner) -> Jobs:
        """List the tenant's newest 200 jobs."""
        return Jobs(jobs=[answer(job) for job in store.of_tenant(owner)])

    @routes.get("/v1/jobs/{job_id}", responses=_refusals(400, 401, 403, 404, 503))
    def get(job_id: str, owner: _Owner) -> JobAnswer:
        """Return a job, with a new URL of its result."""
        job = store.get(job_id, None if planted("foreign-job") else owner)
        if job is None and planted("existence-told") and store.get(job_id) is not None:
            raise RefusedError(404, "this job belongs to another user")
        return answer(_existing(job))

    @routes.delete("/v1/jobs/{job_id}", responses=_refusals(400, 401, 403, 404, 503))
    def cancel(job_id: str, owner: _Owner) -> JobAnswer:
        """Cancel a job; one that has ended stays as it is."""
        return answer(_existing(store.cancel(job_id, owner)))

    @routes.get("/v1/results/{job_id}", response_class=Response, responses=_refusals(403, 404, 503))
    def result(job_id: str, expires: int, signature: str, nonce: str = "") -> Response:
        """Return the result that a signed URL names."""
        signer.check(job_id, expires, nonce, signature)
        job = _existing(store.get(job_id))
        try:
            content = (settings.results / (job.result or "none")).read_bytes()
        except FileNotFoundError:
            raise RefusedError(404, "no such job") from None
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})

    return routes


def _check(body: Submission, owner: Tenant) -> None:
    if body.user_id not in (None, owner) and not planted("tenant-mismatch"):
        raise RefusedError(403, "user_id: the key is of another tenant")
    if body.upload is not None and body.input_url is not None:
        raise RefusedError(400, "upload, input_url: give one of them")
    if body.input_url is not None:
        try:
            urls.check(body.input_url)
        except urls.ForbiddenError as error:
            raise RefusedError(400, f"input_url: {error}") from error


def _existing(job: Job | None) -> Job:
    if job is None:
        raise RefusedError(404, "no such job")
    return job


def _sweep(ended: threading.Event, store: Store, settings: Settings, box: sandbox.Sandbox, pending: Pending) -> None:
    while True:
        try:
            recovery.sweep(store, settings, box, pending)
        except (OSError, sqlite3.Error) as error:
            _log.warning("sweep: %s; trying again", error)
        if ended.wait(1):
            return


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return JSONResponse({"detail": error.message}, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # Without the input, which may be what no JSON can carry.
        told = [{"loc": list(one["loc"]), "msg": one["msg"], "type": one["type"]} for one in error.errors()]
        return Response(json.dumps({"detail": told}), 422, media_type="application/json")

    @app.exception_handler(sqlite3.OperationalError)
    @app.exception_handler(OSError)
    async def no_storage(_: Request, error: Exception) -> Response:
        _log.warning("storage: %s", error)
        return JSONResponse({"detail": "the storage is full or busy; try again later"}, 503)
