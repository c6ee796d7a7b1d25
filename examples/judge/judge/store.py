"""The jobs and uploads, in SQLite. Every change of a state is one statement that names the state it expects.

The rule that makes a kill at any instant harmless: the row that says what will exist is written before the file or
process exists, and is changed last, when it is gone. `attempt` counts the runs of a job; a worker whose attempt is over
changes nothing.
"""

import contextlib
import dataclasses
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from judge.defects import planted

ACTIVE = ("queued", "running", "stalled")
TERMINAL = ("completed", "failed", "cancelled")
MOST_DEATHS = 3
"""A job whose worker died so often is failed: it may be what kills them."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, spec TEXT NOT NULL, idempotency TEXT,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'stalled', 'completed', 'failed', 'cancelled')),
    attempt INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    worker INTEGER,  -- the slot that is busy with it, until the sandbox is empty again
    progress REAL NOT NULL DEFAULT 0, reason TEXT, result TEXT,
    created REAL NOT NULL, started REAL, ended REAL, heartbeat REAL,
    UNIQUE (tenant, idempotency));
CREATE INDEX IF NOT EXISTS waiting ON jobs (state, number);
CREATE INDEX IF NOT EXISTS owned ON jobs (tenant, state);
CREATE INDEX IF NOT EXISTS busy ON jobs (worker) WHERE worker IS NOT NULL;
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, length INTEGER NOT NULL, offset INTEGER NOT NULL DEFAULT 0,
    metadata TEXT NOT NULL, job TEXT, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS secret (only INTEGER PRIMARY KEY CHECK (only = 1), value BLOB NOT NULL);
INSERT OR IGNORE INTO secret VALUES (1, randomblob(32));
"""
_ACTIVE = "state IN ('queued', 'running', 'stalled')"


class RefusedError(Exception):
    """A request that cannot be met, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclasses.dataclass(frozen=True)
class Job:
    number: int
    id: str
    tenant: str
    spec: dict[str, Any]
    idempotency: str | None
    state: str
    attempt: int
    deaths: int
    worker: int | None
    progress: float
    reason: str | None
    result: str | None
    created: float
    started: float | None
    ended: float | None
    heartbeat: float | None


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "spec": json.loads(row["spec"])})


class Store:
    """One database; safe to use from several threads and processes."""

    def __init__(self, data: Path) -> None:
        self._path = data / "judge.sqlite"
        self._local = threading.local()
        # SQLite's own wait for a lock is a poll that may starve; the threads of one process queue up here instead.
        self._turn = threading.Lock()
        with self.change() as db:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self._path, timeout=10, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power loss too
            self._local.db = db
        connection: sqlite3.Connection = self._local.db
        return connection

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is one transaction, which nobody else's change comes between."""
        db = self._connection()
        with self._turn:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, to read one statement's worth."""
        yield self._connection()

    def secret(self) -> bytes:
        """Return what signs the URLs of results; every process of one database has the same."""
        return bytes(self._all("SELECT value FROM secret")[0][0])

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        return self._connection().execute(sql, values).fetchall()

    # What tenants do.

    def create(self, tenant: str, spec: dict[str, Any], idempotency: str | None, limit: int) -> tuple[Job, bool]:
        """Return the new job and True, or the one that this key has already made and False."""
        if planted("quota-race"):
            active = self._all(f"SELECT count(*) FROM jobs WHERE tenant = ? AND {_ACTIVE}", tenant)[0][0]
            time.sleep(0.02)
            limit = limit if active >= limit else 1 << 30
        with self.change() as db:
            if idempotency is not None and not planted("idempotency-ignored"):
                row = db.execute(
                    "SELECT * FROM jobs WHERE tenant = ? AND idempotency = ?", (tenant, idempotency)
                ).fetchone()
                if row is not None:
                    if json.loads(row["spec"]) != spec:
                        raise RefusedError(409, "this Idempotency-Key was used for another job")
                    return _job(row), False
            active = db.execute(f"SELECT count(*) FROM jobs WHERE tenant = ? AND {_ACTIVE}", (tenant,)).fetchone()[0]
            if active >= limit:
                raise RefusedError(429, f"{active} jobs wait or run; the limit is {limit}")
            job_id = uuid.uuid4().hex
            if (upload := spec.get("upload")) is not None:
                self._take_upload(db, tenant, upload, job_id)
            key = None if planted("idempotency-ignored") else idempotency
            db.execute(
                "INSERT INTO jobs (id, tenant, spec, idempotency, state, created) VALUES (?, ?, ?, ?, 'queued', ?)",
                (job_id, tenant, json.dumps(spec), key, time.time()),
            )
            return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()), True

    def _take_upload(self, db: sqlite3.Connection, tenant: str, upload: str, job: str) -> None:
        taken = db.execute(
            "UPDATE uploads SET job = ? WHERE id = ? AND tenant = ? AND job IS NULL AND offset = length",
            (job, upload, tenant),
        )
        if taken.rowcount != 1:
            raise RefusedError(409, "upload: there is none of this id that is complete and not yet used")

    def get(self, job_id: str, tenant: str | None = None) -> Job | None:
        """Return the job, if it is this tenant's; None as the tenant for any."""
        rows = self._all("SELECT * FROM jobs WHERE id = ? AND tenant = coalesce(?, tenant)", job_id, tenant)
        return _job(rows[0]) if rows else None

    def of_tenant(self, tenant: str, limit: int = 200) -> list[Job]:
        """Return the tenant's newest jobs."""
        rows = self._all("SELECT * FROM jobs WHERE tenant = ? ORDER BY number DESC LIMIT ?", tenant, limit)
        return [_job(row) for row in rows]

    def cancel(self, job_id: str, tenant: str) -> Job | None:
        """Cancel the job unless it has ended, and return it."""
        condition = "TRUE" if planted("terminal-overwritten") else _ACTIVE
        with self.change() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', reason = 'cancelled by its user', result = NULL, ended = ?"
                f" WHERE id = ? AND tenant = ? AND {condition}",
                (time.time(), job_id, tenant),
            )
        return self.get(job_id, tenant)

    # What workers do.

    def claim(self, slot: int, limit: int, hint: str | None = None) -> Job | None:
        """Set a waiting job to `running`, the hinted one if it still waits; None if there is none, or no place."""
        if planted("lost-cancel"):
            return self._claim_from_snapshot(slot, limit, hint)
        with self.change() as db:
            busy = db.execute("SELECT count(*) FROM jobs WHERE worker IS NOT NULL").fetchone()[0]
            if busy >= limit and not planted("cap-ignored"):
                return None
            row = db.execute(
                "SELECT * FROM jobs WHERE state = 'queued' ORDER BY id = ? DESC, number LIMIT 1", (hint or "",)
            ).fetchone()
            if planted("redis-drop") and hint is not None:
                row = db.execute("SELECT * FROM jobs WHERE state = 'queued' AND id = ?", (hint,)).fetchone()
            if planted("redis-double") and hint is not None:
                row = db.execute("SELECT * FROM jobs WHERE id = ? AND state != 'cancelled'", (hint,)).fetchone()
            return self._start(db, row, slot) if row is not None else None

    def _start(self, db: sqlite3.Connection, row: sqlite3.Row, slot: int) -> Job:
        now = time.time()
        db.execute(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = ?, started = ?, heartbeat = ?,"
            " progress = 0, reason = NULL, ended = NULL, result = NULL WHERE id = ?",
            (slot, now, now, row["id"]),
        )
        return _job(db.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def _claim_from_snapshot(self, slot: int, limit: int, hint: str | None) -> Job | None:
        busy = self._all("SELECT count(*) FROM jobs WHERE worker IS NOT NULL")[0][0]
        rows = self._all("SELECT * FROM jobs WHERE state = 'queued' ORDER BY id = ? DESC, number LIMIT 1", hint or "")
        if busy >= limit or not rows:
            return None
        time.sleep(0.05)  # as long as a worker may take to load what the job needs
        with self.change() as db:
            return self._start(db, rows[0], slot)

    def wanted(self, job: Job) -> bool:
        """Return whether the worker's run of this job shall go on."""
        mine = "state IN ('running', 'stalled') AND attempt = ? AND worker = ?"
        return bool(self._all(f"SELECT 1 FROM jobs WHERE id = ? AND {mine}", job.id, job.attempt, job.worker))

    def beat(self, job: Job, progress: float) -> bool:
        """Give a sign of life, which also ends a stall; return whether the run shall go on."""
        with self.change() as db:
            changed = db.execute(
                "UPDATE jobs SET state = 'running', heartbeat = ?, progress = ?"
                " WHERE id = ? AND attempt = ? AND worker = ? AND state IN ('running', 'stalled')",
                (time.time(), progress, job.id, job.attempt, job.worker),
            )
            return changed.rowcount == 1

    def finish(self, job: Job, state: str, reason: str | None, result: str | None) -> bool:
        """End the run and free the worker; return False if the job had been ended otherwise, which then stays."""
        with self.change() as db:
            ended = db.execute(
                "UPDATE jobs SET state = ?, reason = ?, result = ?, progress = 1, ended = ?, worker = NULL"
                " WHERE id = ? AND attempt = ? AND worker = ? AND state IN ('running', 'stalled')",
                (state, reason, result, time.time(), job.id, job.attempt, job.worker),
            )
            if ended.rowcount != 1:
                self._release(db, job)
            return ended.rowcount == 1

    def requeue(self, job: Job, reason: str) -> None:
        """Give the job back, for another worker."""
        with self.change() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', reason = ?, progress = 0, worker = NULL"
                " WHERE id = ? AND attempt = ? AND worker = ? AND state IN ('running', 'stalled')",
                (reason, job.id, job.attempt, job.worker),
            )
            self._release(db, job)

    def _release(self, db: sqlite3.Connection, job: Job) -> None:
        db.execute(
            "UPDATE jobs SET worker = NULL WHERE id = ? AND attempt = ? AND worker = ?",
            (job.id, job.attempt, job.worker),
        )

    # What recovery and sweeps do.

    def busy_slots(self) -> list[int]:
        """Return the slots of workers that are, or died, busy."""
        return [
            row[0] for row in self._all("SELECT DISTINCT worker FROM jobs WHERE worker IS NOT NULL ORDER BY worker")
        ]

    def recover_slot(self, slot: int) -> list[str]:
        """Queue or fail what a dead worker ran, and return the ids that wait again; its sandbox must be empty."""
        with self.change() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', reason = ?, ended = ?, worker = NULL, deaths = deaths + 1"
                " WHERE worker = ? AND state IN ('running', 'stalled') AND deaths >= ?",
                (f"its worker died {MOST_DEATHS} times", time.time(), slot, MOST_DEATHS - 1),
            )
            again = db.execute(
                "UPDATE jobs SET state = 'queued', reason = 'recovered after restart', progress = 0, worker = NULL,"
                " deaths = deaths + 1 WHERE worker = ? AND state IN ('running', 'stalled') RETURNING id",
                (slot,),
            ).fetchall()
            db.execute("UPDATE jobs SET worker = NULL WHERE worker = ?", (slot,))
            return [row[0] for row in again]

    def rerun_finished(self) -> None:
        """The defect of this name."""
        with self.change() as db:
            db.execute("UPDATE jobs SET state = 'queued', result = NULL WHERE state = 'completed'")

    def stall(self, silent: float) -> int:
        """Mark as stalled what has given no sign of life for so many seconds; return how many."""
        with self.change() as db:
            return db.execute(
                "UPDATE jobs SET state = 'stalled', reason = 'no sign of life from its worker'"
                " WHERE state = 'running' AND heartbeat < ?",
                (time.time() - silent,),
            ).rowcount

    def fail_stalled(self, silent: float) -> int:
        """Fail what is stalled and has given no sign of life for so many seconds; return how many.

        This frees the place of a worker that hangs. When it wakes up, it finds its run over.
        """
        with self.change() as db:
            return db.execute(
                "UPDATE jobs SET state = 'failed', reason = ?, ended = ?, worker = NULL"
                " WHERE state = 'stalled' AND heartbeat < ?",
                ("stalled: no sign of life from its worker", time.time(), time.time() - silent),
            ).rowcount

    def remove_old(self, older: float) -> int:
        """Forget jobs that ended so many seconds ago; their files are garbage from then on. Return how many."""
        state = "TRUE" if planted("clean-active") else "state IN ('completed', 'failed', 'cancelled')"
        age = "created" if planted("clean-active") else "ended"
        with self.change() as db:
            return db.execute(
                f"DELETE FROM jobs WHERE {state} AND worker IS NULL AND {age} <= ?", (time.time() - older,)
            ).rowcount

    def files(self) -> set[str]:
        """Return the names of all files and directories below work, results and uploads that are not garbage."""
        with self.change() as db:
            rows = db.execute("SELECT id, attempt, worker, result FROM jobs").fetchall()
            kept = {row["result"] for row in rows if row["result"]}
            for row in rows:
                if row["worker"] is not None:
                    kept |= {f"{row['id']}.{row['attempt']}", f"{row['id']}.{row['attempt']}.json"}
            return kept | {row[0] for row in db.execute("SELECT id FROM uploads")}
