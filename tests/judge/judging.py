"""A judge of its own for a test: its processes, its data, and clients of its tenants."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
JUDGE = ROOT / "examples/judge"
TUS = {"Tus-Resumable": "1.0.0"}
_PATIENCE = 120.0


def wait_until(what: str, holds: Any) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + _PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end, f"not in {_PATIENCE:.0f} s: {what}"
        time.sleep(0.02)
    return found


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Judge:
    """One judge below a directory; each part may be started, killed and started again."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data, self.port, self.web_port = data, free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("JUDGE_")},
            "PYTHONPATH": f"{JUDGE}:{ROOT}",
            "JUDGE_DATA": str(data),
            "JUDGE_KEYS": "alice-key=alice,bob-key=bob",
            "JUDGE_PORT": str(self.port),
            "JUDGE_WEB_PORT": str(self.web_port),
            **environment,
        }
        self.log = data.with_name(f"{data.name}.log")
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        """The last one that was started of each part."""
        self._running: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, part: str, *, wait: bool = True, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a part, and wait until it is ready."""
        ready = self._workers_ready()
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "judge", part],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running.append(started)
        self.parts[part] = started
        port = {"serve": self.port, "web": self.web_port}.get(part)
        if wait:
            is_ready = (lambda: self._workers_ready() > ready) if port is None else (lambda: _answers(port))
            wait_until(f"{part} is ready", lambda: is_ready() or started.poll() is not None)
            assert started.poll() is None, self.log.read_text()
        return started

    def _workers_ready(self) -> int:
        return self.log.read_text().count("is ready") if self.log.exists() else 0

    def run(self, part: str, **environment: str) -> str:
        """Run a command and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "judge", part],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return f"{done.returncode} {done.stdout}{done.stderr}"

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill a part with SIGKILL and wait for its end."""
        process.kill()  # our child, which only we reap
        process.wait()
        self._running.remove(process)

    def stop(self) -> None:
        """End all parts in order."""
        for process in self._running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def client(self, tenant: str = "alice", **headers: str) -> "Client":
        """Return a client of a tenant."""
        return Client(self.url, tenant, headers)

    def files(self, directory: str) -> list[str]:
        """Return the names of the files below a directory of the data."""
        return sorted(path.name for path in (self.data / directory).iterdir())


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code in (200, 404)
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def judge(data: Path, *parts: str, **environment: str) -> Iterator[Judge]:
    """A judge with these parts running."""
    made = Judge(data, **environment)
    try:
        for part in parts:
            made.start(part)
        yield made
    finally:
        made.stop()


class Client(httpx.Client):
    """A tenant's client."""

    def __init__(self, url: str, tenant: str, headers: dict[str, str]) -> None:
        super().__init__(
            base_url=url, headers={"X-API-Key": f"{tenant}-key", "X-User-ID": tenant, **headers}, timeout=30
        )

    def create(self, source: str = "echo done", key: str | None = None, **more: str) -> httpx.Response:
        """Ask for a job."""
        headers = {"Idempotency-Key": key} if key else {}
        return self.post("/v1/jobs", json={"workflow": "run", "source": source, **more}, headers=headers)

    def made(self, source: str = "echo done", **more: str) -> str:
        """Create a job and return its id."""
        answer = self.create(source, **more)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return dict(self.get(f"/v1/jobs/{job_id}").raise_for_status().json())

    def jobs(self) -> list[dict[str, Any]]:
        """Return the tenant's jobs."""
        return list(self.get("/v1/jobs").raise_for_status().json()["jobs"])

    def comes_to(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until the job has one of the states, and return it."""
        return dict(
            wait_until(
                f"{job_id} is {' or '.join(states)}",
                lambda: found if (found := self.job(job_id))["state"] in states else None,
            )
        )

    def ends(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job, and return it."""
        return self.comes_to(job_id, "completed", "failed", "cancelled")

    def upload(self, content: bytes, length: int | None = None) -> str:
        """Begin an upload with some content and return its path."""
        answer = self.post(
            "/v1/uploads", headers=TUS | {"Upload-Length": str(len(content) if length is None else length)}
        )
        assert answer.status_code == 201, answer.text
        path = answer.headers["Location"]
        if content:
            assert self.chunk(path, 0, content).status_code == 204
        return str(path)

    def chunk(self, path: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
        """Send a chunk."""
        kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        return self.patch(path, content=content, headers=TUS | kind | headers)

    def offset(self, path: str) -> int:
        """Return how much of an upload has arrived."""
        return int(self.head(path, headers=TUS).headers["Upload-Offset"])
