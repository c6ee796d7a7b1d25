"""The worker: runs one job at a time in its box, and looks at every step whether the job is still wanted."""

import json
import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from judge import recovery, sandbox, urls
from judge.defects import planted
from judge.pending import Pending
from judge.settings import Settings, UnusableError
from judge.store import Job, Store

_POLL = 0.05
"""Seconds between two looks at a running job's row: how long a cancelled submission runs on at most."""
_log = logging.getLogger("judge")


class _OverError(Exception):
    """The job was cancelled, or failed as stalled: nothing more is to be done."""


class Worker:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store, self._pending = Store(settings.data), Pending(settings.redis)
        self._sandbox = sandbox.of(settings)
        self._stopping = False

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; then the job that runs is given back."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with recovery.own_slot(self._settings) as slot:
            self._take_over(slot)
            self._sandbox.check(slot, self._settings.workers / f"{slot}.check")
            recovery.remove_garbage(self._store, self._settings)
            _log.info("worker %d is ready", slot)
            self._loop(slot)

    def _take_over(self, slot: int) -> None:
        """Recover what the last worker of this slot ran; its refbox may still be emptying the box."""
        for _ in range(300):
            if recovery.recover_slot(self._store, self._sandbox, self._pending, slot):
                return
            time.sleep(0.1)
        raise UnusableError(f"box {slot} cannot be emptied: see refbox health --state {self._settings.data / 'refbox'}")

    def _loop(self, slot: int) -> None:
        swept, wait = 0.0, 0.0
        while not self._stopping:
            try:
                if time.monotonic() - swept >= 1:
                    recovery.sweep(self._store, self._settings, self._sandbox, self._pending)
                    swept = time.monotonic()
                hint = self._pending.take(wait)
                job = self._store.claim(slot, self._settings.concurrency, hint)
                wait = 0.2 if job is None else 0.01
                if job is not None:
                    self._process(job)
            except sqlite3.OperationalError as error:
                _log.warning("database: %s; trying again", error)
                time.sleep(0.5)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _process(self, job: Job) -> None:
        """Run the job and write down how it ended; the row names the attempt for as long as its files exist."""
        work = self._settings.work / f"{job.id}.{job.attempt}"
        result: str | None = None
        try:
            work.mkdir(mode=0o755)
            outcome = self._outcome(job, work)
            recovery.remove(work)  # before the result is written, which may need the place
            result = self._save(job, outcome)
            state = "completed" if outcome["status"] == "OK" else "failed"
            reason = None if state == "completed" else f"{outcome['status']}: {outcome['reason']}"
        except _OverError:
            state, reason = "cancelled", None  # stands in the row already
        except sqlite3.OperationalError as error:
            state, reason = "failed", f"the database failed: {error}"
        except OSError as error:
            state, reason = "failed", f"{error.strerror or error}"
        except urls.ForbiddenError as error:
            state, reason = "failed", f"input_url: {error}"
        finally:
            if not planted("work-left"):
                recovery.remove(work)
        if self._stopping and state != "completed":
            self._write(lambda: self._store.requeue(job, "its worker was stopped"))
        elif not self._write(lambda: self._store.finish(job, state, reason, result)) and result is not None:
            recovery.remove(self._settings.results / result)

    def _outcome(self, job: Job, work: Path) -> dict[str, Any]:
        self._step(job, 0.1)
        stdin = self._input(job, work)
        self._step(job, 0.2)
        run = self._sandbox.start(job.worker or 0, work, job.spec, stdin)
        try:
            self._watch(job, run)
        finally:
            if not planted("orphan-after-cancel"):
                run.stop()
        return run.outcome()

    def _watch(self, job: Job, run: sandbox.Run) -> None:
        beaten, started = time.monotonic(), time.monotonic()
        while run.process.poll() is None:
            if self._stopping:
                raise _OverError
            if time.monotonic() - beaten >= self._settings.stall / 4:
                passed = (time.monotonic() - started) / self._settings.wall
                self._step(job, round(0.2 + 0.7 * min(passed, 1), 2))
                beaten = time.monotonic()
            elif not self._store.wanted(job):
                raise _OverError
            time.sleep(_POLL)

    def _step(self, job: Job, progress: float) -> None:
        try:
            wanted = self._store.beat(job, progress)
        except sqlite3.OperationalError:  # the disk is full: without a sign of life the run still goes on
            wanted = self._store.wanted(job)
        if self._stopping or not wanted:
            raise _OverError

    def _input(self, job: Job, work: Path) -> Path | None:
        if (upload := job.spec.get("upload")) is not None:
            return self._settings.uploads / str(upload)
        if (url := job.spec.get("input_url")) is not None:
            urls.fetch(url, work / "input", self._settings.max_upload)
            return work / "input"
        return None

    def _save(self, job: Job, outcome: dict[str, Any]) -> str:
        """Write the result and return its name."""
        name = f"{job.id}.{job.attempt}.json"
        with (self._settings.results / name).open("wb") as file:  # garbage until the row names it
            file.write(json.dumps({"id": job.id, **outcome}).encode())
            file.flush()
            os.fsync(file.fileno())
        return name

    def _write(self, change: Callable[[], Any]) -> Any:
        """Change the row, however long the disk is full; while it waits, the job shows no sign of life and stalls."""
        while True:
            try:
                return change()
            except sqlite3.OperationalError as error:
                if self._stopping:
                    return None  # the next worker of this slot recovers the job
                _log.warning("database: %s; trying again", error)
                time.sleep(0.5)
