"""A small job service, for tests of the engine: threads, a dictionary, and `sleep` as work. DEFECT plants a fault.

With KERNELS its jobs are like the kernels of a notebook server: cancelled ones are gone, and all of them with it.
"""

import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

DEFECT = os.environ.get("DEFECT", "")
KERNELS = "KERNELS" in os.environ
DATA = Path(os.environ["DATA"])
LIMIT = 5
LARGEST = 100_000
KEYS = {"ka": "alice", "kb": "bob"}
lock = threading.RLock()
wake = threading.Condition(lock)
jobs: dict[str, dict] = {}
procs: dict[str, subprocess.Popen] = {}
kept: list = []
twins: dict[str, subprocess.Popen] = {}
recent: list[float] = []
listing = 0
ACTIVE = ("queued", "running")


def save() -> None:
    part = DATA / "jobs.part"
    part.write_text(json.dumps(jobs))
    part.replace(DATA / "jobs.json")


def worker() -> None:
    while True:
        with wake:
            while not (queue := [job for job in jobs.values() if job["state"] == "queued"]):
                wake.wait(1)
            job = queue[0]
            snapshot = dict(job)
            if DEFECT != "lost-cancel":
                start(job)
        if DEFECT == "lost-cancel":
            time.sleep(0.05)
            with lock:
                # Whatever happened to it since.
                jobs[job["id"]] = job = snapshot
                start(job)
        process = procs[job["id"]]
        process.wait()
        with lock:
            procs.pop(job["id"], None)
            if job["state"] == "running":
                job["state"] = "completed" if process.returncode == 0 else "failed"
                job["reason"] = f"exit {process.returncode}"
                if DEFECT == "flips":
                    threading.Timer(0.6, job.update, [{"state": "running"}]).start()
            save()


def start(job: dict) -> None:
    job["state"] = "running"
    # It dies with the service, which may have ended before setpriv was there.
    argv = ["setpriv", "--pdeathsig", "KILL", "bash", "-c"]
    argv += [
        f'[ $PPID = {os.getpid()} ] || exit 9; exec -a "$0" sleep {job["seconds"]}'
        if not job["code"]
        else f"exit {job['code']}",
        job["id"] if KERNELS else job["mark"] or "job",
    ]
    procs[job["id"]] = subprocess.Popen(argv, start_new_session=True)
    if DEFECT == "twice":
        subprocess.Popen(argv)
    if job.get("again"):
        twins[job["id"]] = subprocess.Popen(argv, start_new_session=True)
    if DEFECT == "orphan":
        subprocess.Popen(["sleep", "60"], start_new_session=True)
    save()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def user(self) -> str | None:
        key, user = self.headers.get("X-API-Key", ""), self.headers.get("X-User-ID")
        if key not in KEYS:
            self.say(401, {"error": "key"})
        elif user is None or user != KEYS[key]:
            self.say(400, {"error": "user"})
        else:
            return user
        return None

    def url(self, job: str) -> str:
        until = time.time() + (3600 if DEFECT == "long-url" else 2)
        name = "until" if DEFECT == "no-expiry" else "expires"
        return f"/results/{job}?{name}={until:.0f}&signature={signature(job, f'{until:.0f}')}&n={time.monotonic()}"

    def result(self) -> None:
        parts = urlsplit(self.path)
        query, job = dict(parse_qsl(parts.query)), parts.path.rpartition("/")[2]
        until = query.get("expires") or query.get("until") or "0"
        right = query.get("signature") == signature(job, until) and int(until) >= time.time()
        if right or (DEFECT == "result-of-others" and self.headers.get("X-API-Key") in KEYS):
            return self.say(200, {"job": job})
        return self.say(403, {"error": "signature"})

    def upload(self) -> None:
        rest = int(self.headers.get("Content-Length", 0))
        if rest > LARGEST:
            return self.say(413, {"error": "size"})
        path = DATA / f"part-{uuid.uuid4().hex}"
        path.touch()
        while rest and (block := self.rfile.read1(rest)):
            rest -= len(block)
        if rest == 0 or DEFECT != "upload-gone":
            path.unlink()
        return self.say(201, {}) if rest == 0 else None

    def list(self, mine: list[dict]) -> None:
        global listing
        with lock:
            listing += 1
        time.sleep(0.02)
        busy = DEFECT == "list-busy" and listing > 10
        with lock:
            listing -= 1
        self.say(200, {"error": "busy"} if busy else mine if KERNELS else {"jobs": mine})

    def do_GET(self) -> None:
        if self.path.startswith("/results/"):
            return self.result()
        if self.path == "/health":
            if DEFECT == "html":
                return self.say(500, "no")
            return self.say(200, {"status": "ok"})
        if (user := self.user()) is None:
            return None
        with lock:
            mine = [dict(job) for job in jobs.values() if job["user"] == user or DEFECT == "others"]
        for job in mine:
            job["url"] = self.url(job["id"])
        if self.path == "/jobs":
            return self.list(mine)
        job = next((job for job in mine if job["id"] == self.path.rpartition("/")[2]), None)
        return self.say(404, {"error": "no such job"}) if job is None else self.say(200, job)

    def do_DELETE(self) -> None:
        if (user := self.user()) is None:
            return None
        with lock:
            job = jobs.get(self.path.rpartition("/")[2])
            lets = DEFECT == "cancel-of-others" and job is not None and job["state"] in ACTIVE
            if job is None or (job["user"] != user and not lets):
                return self.say(404, {"error": "no such job"})
            if job["state"] in ACTIVE:
                job["state"] = "cancelled"
                process = procs.get(job["id"])
                if twin := twins.pop(job["id"], None):
                    twin.kill()
                    twin.wait()
                if process is not None and DEFECT != "survivor":
                    os.killpg(process.pid, signal.SIGKILL)
            if KERNELS:
                jobs.pop(job["id"])
                self.send_response(204)
                return self.end_headers()
            save()
            return self.say(200, job)

    def body(self, length: int) -> bytes:
        text = self.rfile.read(length)
        if DEFECT == "body-gone" and len(text) < length:
            (DATA / f"body-{uuid.uuid4().hex}").write_bytes(text)
        return text

    def is_refused(self, job: dict) -> bool:
        active = sum(one["user"] == job["user"] and one["state"] in ACTIVE for one in jobs.values())
        recent[:] = [one for one in [*recent, time.monotonic()] if one > time.monotonic() - 1]
        if active < LIMIT or DEFECT == "quota" or (DEFECT == "quota-of-many" and len(recent) > 50):
            return False
        if DEFECT == "ghost":
            jobs[job["id"]] = job
        return True

    def do_POST(self) -> None:
        if (user := self.user()) is None:
            return None
        if self.path == "/uploads":
            return self.upload()
        try:
            body = json.loads(self.body(int(self.headers.get("Content-Length", 0))))
            wrong = not body.get("workflow")
        except (ValueError, AttributeError, RecursionError):
            wrong = True
        if wrong:
            return self.say(422, {"error": "workflow"})
        if body.get("user_id", user) != user:
            return self.say(403, {"error": "user_id"})
        if DEFECT == "temp":
            (DATA / f"upload-{uuid.uuid4().hex}").write_text("x")
        if DEFECT == "fd":
            kept.append(os.open(os.devnull, os.O_RDONLY))
        job = {"id": uuid.uuid4().hex, "user": user, "state": "weird" if DEFECT == "state" else "queued"}
        job |= {"seconds": body.get("seconds", 0.05), "code": body.get("code", 0), "mark": body.get("mark", "")}
        if DEFECT == "quota":
            if sum(one["user"] == user and one["state"] in ACTIVE for one in list(jobs.values())) >= LIMIT:
                return self.say(429, {"error": "limit"})
            time.sleep(0.05)
        with wake:
            if self.is_refused(job):
                return self.say(429, {"error": "limit"})
            if DEFECT != "drop" or len(jobs) % 3 != 2:
                jobs[job["id"]] = job
            save()
            wake.notify()
        return self.say(201, job)


def signature(job: str, until: str) -> str:
    return hmac.digest(b"key", f"{job} {until}".encode(), "sha256").hex()


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def main() -> None:
    DATA.mkdir(exist_ok=True)
    if (DATA / "jobs.json").exists() and DEFECT != "forgets" and not KERNELS:
        jobs.update(json.loads((DATA / "jobs.json").read_text()))
        for job in jobs.values():
            if job["state"] == "running" and DEFECT != "stuck":
                job["state"], job["reason"] = "failed", "the service was restarted"
                if DEFECT == "both":
                    job["state"], job["again"] = "queued", True
    server = Server(("127.0.0.1", 8901), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if DEFECT == "leaves" else stop())
    threading.Thread(target=worker, daemon=True).start()
    server.serve_forever()


def stop() -> None:
    for process in list(procs.values()):
        process.kill()
    sys.exit(0)


main()
