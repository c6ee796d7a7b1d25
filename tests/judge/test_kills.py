"""Whatever is killed at whatever instant, no job is lost, doubled or stuck, no limit is exceeded, nothing is left."""

import itertools
import json
import random
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from judging import ROOT, Judge, judge, wait_until

SOURCES = ["true", "echo done; sleep 0.1", "sleep 0.3", "exit 3", "setsid sleep 60 & echo left"]


class Tenant(threading.Thread):
    """Creates jobs, cancels some, and looks at them all the time; asks again if no answer comes."""

    def __init__(self, made: Judge, name: str, seed: int) -> None:
        super().__init__()
        self._judge, self._tenant, self._random = made, name, random.Random(seed)
        self.ended = threading.Event()
        self.accepted: dict[str, str] = {}
        """Idempotency-Key → id."""
        self.cancelled: set[str] = set()
        self.errors: list[str] = []
        self._seen: dict[str, tuple[str, float | None]] = {}

    def run(self) -> None:
        with self._judge.client(self._tenant) as client:
            for number in itertools.count():
                if self.ended.is_set():
                    return
                self._act(client, f"{self._tenant}-{number}")

    def _act(self, client: httpx.Client, key: str) -> None:
        body = {"workflow": "run", "source": self._random.choice(SOURCES)}
        answer = self._asked(lambda: client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}))
        if answer.status_code == 201:
            self.accepted[key] = answer.json()["id"]
        elif answer.status_code != 429:
            self.errors.append(f"create: {answer.status_code} {answer.text}")
        if self.accepted and self._random.random() < 0.2:
            job = self._random.choice([*self.accepted.values()])
            if self._asked(lambda: client.delete(f"/v1/jobs/{job}")).json()["state"] == "cancelled":
                self.cancelled.add(job)
        self.look(self._asked(lambda: client.get("/v1/jobs")).json()["jobs"])

    def look(self, jobs: list[dict]) -> None:  # type: ignore[type-arg]
        """Check what must hold at every instant."""
        active = [job for job in jobs if job["state"] in ("queued", "running", "stalled")]
        if len(active) > 5:
            self.errors.append(f"{len(active)} active jobs")
        for job in jobs:
            now, before = (job["state"], job["ended"]), self._seen.get(job["id"])
            if before and before[0] in ("completed", "failed", "cancelled") and now != before:
                self.errors.append(f"{job['id']} was {before} and is {now}")
            self._seen[job["id"]] = now

    def _asked(self, ask) -> httpx.Response:  # type: ignore[no-untyped-def]
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                answer: httpx.Response = ask()
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if answer.status_code < 500:
                return answer
            self.errors.append(f"{answer.status_code} {answer.text}")
        raise AssertionError("no answer in 60 s")


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 7), pytest.param(2, 150, marks=pytest.mark.slow)],  # slow: the same for longer
)
def test_kills_at_random_instants_lose_double_and_block_nothing(tmp_path: Path, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    with judge(tmp_path / "data", JUDGE_CONCURRENCY="2", JUDGE_KEEP="0") as made:
        parts = [(part, made.start(part)) for part in ("serve", "worker", "worker")]
        tenants = [Tenant(made, name, chance.random()) for name in ("alice", "bob")]  # type: ignore[arg-type]
        for tenant in tenants:
            tenant.start()
        try:
            for _ in range(kills):
                time.sleep(chance.random() * 0.4)
                at = chance.randrange(len(parts))
                part, process = parts[at]
                made.kill(process)
                parts[at] = (part, made.start(part, wait=part == "serve"))
        finally:
            for tenant in tenants:
                tenant.ended.set()
            for tenant in tenants:
                tenant.join()
        _all_ended_well(made, tenants)
        for _, process in parts:
            process.terminate()
        made.stop()
        assert not made.files("uploads") and not made.files("work")
        health = subprocess.run(
            [ROOT / "leakcheck/_bin/refbox", "health", "--state", made.data / "refbox"], capture_output=True
        )
        assert json.loads(health.stdout)["status"] == "healthy"
        assert made.log.read_text().count("Traceback") == 0, made.log.read_text()


def _all_ended_well(made: Judge, tenants: list[Tenant]) -> None:
    db = sqlite3.connect(made.data / "judge.sqlite")
    waiting = "SELECT count(*) FROM jobs WHERE worker IS NOT NULL OR state IN ('queued', 'running', 'stalled')"
    wait_until("all jobs have ended", lambda: db.execute(waiting).fetchone()[0] == 0)
    rows = db.execute("SELECT id, tenant, idempotency, state, reason, result, deaths FROM jobs").fetchall()
    db.close()
    for tenant in tenants:
        assert not tenant.errors, tenant.errors[:5]
        mine = {key: job for job, owner, key, *_ in rows if owner == tenant._tenant}
        # What was accepted is there once. What is there was accepted: each key was asked for until an answer came.
        assert mine == tenant.accepted
    states = {job: (state, reason, deaths) for job, _, _, state, reason, _, deaths in rows}
    assert all(states[job][0] == "cancelled" for tenant in tenants for job in tenant.cancelled)
    for state, reason, deaths in states.values():
        # A submission fails for its own reason, or because three workers that ran it were killed.
        assert state != "failed" or reason == "RE: exit code 3" or deaths == 3, (state, reason)
    assert sorted(row[5] for row in rows if row[5]) == made.files("results")
    assert rows
