"""A small job service, for tests of the engine: threads, a dictionary, and `sleep` as work. DEFECT plants a fault."""

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

DEFECT = os.environ.get("DEFECT", "")
DATA = Path(os.environ["DATA"])
LIMIT = 5
KEYS = {"ka": "alice", "kb": "bob"}
lock = threading.RLock()
wake = threading.Condition(lock)
jobs: dict[str, dict] = {}
procs: dict[str, subprocess.Popen] = {}
kept: list = []
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
            save()


def start(job: dict) -> None:
    job["state"] = "running"
    # It dies with the service.
    argv = ["setpriv", "--pdeathsig", "KILL", "bash", "-c"]
    argv += [f'exec -a "$0" sleep {job["seconds"]}' if not job["code"] else f"exit {job['code']}", job["mark"] or "job"]
    procs[job["id"]] = subprocess.Popen(argv, start_new_session=True)
    if DEFECT == "twice":
        subprocess.Popen(argv)
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

    def do_GET(self) -> None:
        if self.path == "/health":
            if DEFECT == "html":
                return self.say(500, "no")
            return self.say(200, {"status": "ok"})
        if (user := self.user()) is None:
            return None
        with lock:
            mine = [dict(job) for job in jobs.values() if job["user"] == user or DEFECT == "others"]
        if self.path == "/jobs":
            return self.say(200, {"jobs": mine})
        job = next((job for job in mine if job["id"] == self.path.rpartition("/")[2]), None)
        return self.say(404, {"error": "no such job"}) if job is None else self.say(200, job)

    def do_DELETE(self) -> None:
        if (user := self.user()) is None:
            return None
        with lock:
            job = jobs.get(self.path.rpartition("/")[2])
            if job is None or job["user"] != user:
                return self.say(404, {"error": "no such job"})
            if job["state"] in ACTIVE:
                job["state"] = "cancelled"
                process = procs.get(job["id"])
                if process is not None and DEFECT != "survivor":
                    os.killpg(process.pid, signal.SIGKILL)
            save()
            return self.say(200, job)

    def do_POST(self) -> None:
        if (user := self.user()) is None:
            return None
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
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
            active = sum(one["user"] == user and one["state"] in ACTIVE for one in jobs.values())
            if active >= LIMIT and DEFECT != "quota":
                return self.say(429, {"error": "limit"})
            if DEFECT != "drop" or len(jobs) % 3 != 2:
                jobs[job["id"]] = job
            save()
            wake.notify()
        return self.say(201, job)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def main() -> None:
    DATA.mkdir(exist_ok=True)
    if (DATA / "jobs.json").exists() and DEFECT != "forgets":
        jobs.update(json.loads((DATA / "jobs.json").read_text()))
        for job in jobs.values():
            if job["state"] == "running" and DEFECT != "stuck":
                job["state"], job["reason"] = "failed", "the service was restarted"
    server = Server(("127.0.0.1", 8901), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if DEFECT == "leaves" else stop())
    threading.Thread(target=worker, daemon=True).start()
    server.serve_forever()


def stop() -> None:
    for process in list(procs.values()):
        process.kill()
    sys.exit(0)


main()
