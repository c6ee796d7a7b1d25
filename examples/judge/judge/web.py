"""The web page: rendered by the server, a client of the API like any other, and without a state of its own."""

import uuid
from pathlib import Path
from urllib.parse import parse_qs, quote

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.background import BackgroundTask

from judge.defects import planted
from judge.settings import Settings

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=select_autoescape())
_ENDED = ("completed", "failed", "cancelled")
_MOST_FORM = 1 << 20


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it acts as the tenant of the first key."""
    key, tenant = next(iter(settings.keys.items()))
    api = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{settings.port}", headers={"X-API-Key": key, "X-User-ID": tenant}, timeout=10
    )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(httpx.TransportError)
    async def away(_: Request, __: Exception) -> Response:
        # The page loads itself again until the API is back.
        return _page("away.html", 503)

    @app.get("/")
    async def index() -> Response:
        answer = await api.get("/v1/jobs")
        return _page("index.html", jobs=answer.json()["jobs"], token=uuid.uuid4().hex)

    @app.post("/submit")
    async def submit(request: Request) -> Response:
        form = await _form(request)
        if form is None:
            return _page("refused.html", 403, reason="this form was sent by another site, or is too large")
        # The token was made with the form: sent twice, it is one job.
        body = {"workflow": "run", "language": form.get("language", "sh"), "source": form.get("source", "")}
        answer = await api.post("/v1/jobs", json=body, headers={"Idempotency-Key": form.get("token", "")[:200]})
        if answer.status_code != 201:
            return _page("refused.html", answer.status_code, reason=str(answer.json().get("detail")))
        return RedirectResponse(f"/jobs/{answer.json()['id']}", 303)

    @app.get("/jobs/{job_id}")
    async def job(job_id: str) -> Response:
        answer = await api.get(f"/v1/jobs/{quote(job_id, safe='')}")
        if answer.status_code != 200:
            return _page("refused.html", answer.status_code, reason="no such job")
        found = answer.json()
        result = (await api.get(found["result_url"])).json() if found["result_url"] else None
        ghost = BackgroundTask(api.post, "/v1/jobs", json={"workflow": "run", "source": "true"})
        page = _page("job.html", job=found, result=result, ended=found["state"] in _ENDED)
        page.background = ghost if planted("ghost-run") else None
        return page

    @app.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str, request: Request) -> Response:
        if await _form(request) is None:
            return _page("refused.html", 403, reason="this form was sent by another site")
        await api.delete(f"/v1/jobs/{quote(job_id, safe='')}")
        return RedirectResponse(f"/jobs/{quote(job_id, safe='')}", 303)

    return app


async def _form(request: Request) -> dict[str, str] | None:
    """Return the fields; None if another site's page sent it, or if it is too large."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return None
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_FORM:
            return None
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


def _page(template: str, status: int = 200, **values: object) -> Response:
    text = _TEMPLATES.get_template(template).render(**values)
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'"}
    return Response(text, status, headers, media_type="text/html")
