"""What a worker does: it tells what it would test, and runs one shard into a store of its own."""

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distributed
import msgspec

from leakcheck.campaigns import CAMPAIGNS
from leakcheck.campaigns.engine import run
from leakcheck.evidence import Store
from leakcheck.evidence.machine import machine_facts, tested_facts
from leakcheck.targets import load
from leakcheck.trials.executor import Ui

_EVERY_S = 1.0
# A process has one warden, and the trials of two shards would disturb each other's time limits.
_ALONE = threading.Lock()


class Shard(msgspec.Struct, frozen=True):
    """A shard of a sweep.

    `options` are those of the campaign, as JSON; `topic` is where its progress is reported. Its processes run on the
    processors `cpus`, or on all if there are none.
    """

    campaign: str
    target: str
    options: bytes
    topic: str
    cpus: tuple[int, ...] = ()


class Report(Ui):
    """Reports the progress of a shard to the scheduler, at most once a second."""

    def __init__(self, worker: distributed.Worker, shard: Shard) -> None:
        self._worker, self._topic = worker, shard.topic
        self._shard = msgspec.json.decode(shard.options)["shard"]
        self._wanted: int | None = None
        self._due = 0.0
        self.send("began")

    def send(self, what: str, count: int = 0) -> None:
        """Report that the shard `what`: began, or runs and has made so many trials."""
        found = {"shard": self._shard, "worker": self._worker.address, "what": what, "made": count}
        self._worker.log_event(self._topic, found | {"wanted": self._wanted})

    def expect(self, trials: int | None) -> None:
        """Know how many trials there will be."""
        self._wanted = trials

    def made(self, trial: Any, count: int) -> None:
        """Report that there is one more."""
        del trial
        if time.monotonic() >= self._due or count == self._wanted:
            self._due = time.monotonic() + _EVERY_S
            self.send("runs", count)


def facts_of(name: str) -> Mapping[str, Any]:
    """Return what a worker would test, and on what machine; raise `LeakcheckError` if it cannot."""
    target = load(name)
    target.check_ready()
    return {**machine_facts(), **tested_facts(target)}


def run_shard(shard: Shard) -> bytes:
    """Run a shard, and return its store: whole, or not at all.

    It ends early if its result is not wanted any more.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()

    def unwanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state != "executing"

    campaign = CAMPAIGNS[shard.campaign]
    target, options = load(shard.target), msgspec.json.decode(shard.options, type=campaign.options)
    with _ALONE, tempfile.TemporaryDirectory(prefix="leakcheck-", dir=worker.local_directory) as directory:
        if shard.cpus:
            # Of this thread, and of all that it starts.
            os.sched_setaffinity(0, shard.cpus)
        path = Path(directory) / "shard.db"
        with Store(path, create=True) as store, store.record(campaign, target, options, resume=False) as recording:
            run(campaign, target, options, Report(worker, shard), stop=unwanted, recording=recording)
        return path.read_bytes()
