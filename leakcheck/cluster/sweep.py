"""The coordinator: gives each worker a shard, takes the stores that come back, and puts the sweep together."""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import distributed
import msgspec

from leakcheck.campaigns import Campaign, Result
from leakcheck.campaigns.sweep import Sweep
from leakcheck.campaigns.sweep_options import SweepOptions
from leakcheck.cluster.connection import connected, directory_beside
from leakcheck.cluster.shard import Shard, facts_of, run_shard
from leakcheck.errors import LeakcheckError, StoppedError, TargetError, UsageError
from leakcheck.evidence import Run, Store
from leakcheck.evidence.machine import loaded_by
from leakcheck.evidence.merge import IDENTITY, copy_runs, ended_shards, merge
from leakcheck.targets import Target
from leakcheck.trials.executor import Ui
from leakcheck.trials.runner import Stop

_LOOK_S = 0.2
_SHOWN_S = 5.0


def _divisible(campaign: Campaign[Any, Any], options: Any) -> SweepOptions:
    """Return the options of a sweep that can be divided among workers; raise `UsageError` for another campaign."""
    if not isinstance(campaign, Sweep):
        raise UsageError(f"--cluster: {campaign.name} has no shards; only campaigns that visit points have: crash, …")
    found = cast("SweepOptions", options)
    for name, usual in (("plan", None), ("shard", "1/1"), ("iterations", 0), ("enough", 0)):
        if getattr(found, name) != usual:
            raise UsageError(f"--cluster --{name}: the cluster runs a whole sweep; give one of the two")
    return found


def run_on_cluster(
    address: str,
    campaign: Campaign[Any, Any],
    target: Target,
    options: Any,
    path: Path,
    ui: Ui,
    *,
    stop: Stop,
    resume: bool = False,
) -> Result:
    """Run a sweep on the cluster at `address`, a shard a worker, and return its result.

    Each shard that has ended is kept in the store at `path`, and at last the whole sweep. A shard whose worker has gone
    is run again by another one. If `resume`, shards of the same sweep that are in the store are not run again.

    Raises:
        UsageError: the campaign has no shards, the cluster cannot be used, or its machines differ.
        TargetError: a shard could not be run.
        StoppedError: `stop` returned true before all had ended.
    """
    whole = _divisible(campaign, options)
    with (
        Store(path, create=True) as store,
        directory_beside(path) as directory,
        connected(address, directory) as client,
        Store(directory / "sweep.db", create=True) as sweep,
    ):
        workers = _alike(client, target)
        kept, of = _kept(store, campaign, target, whole, next(iter(workers.values()))) if resume else ([], 0)
        of = of or len(workers)
        copy_runs(store, sweep, ui.log, only={run.uid for run in kept})
        done = {run.options["shard"] for run in kept}
        if done:
            ui.log(f"goes on: {len(done)} of {of} shards had ended")
        shards = [name for number in range(of) if (name := f"{number + 1}/{of}") not in done]
        with _Progress(client, ui, of) as progress:
            for name, made in _made(client, campaign, target, whole, shards, [*workers], progress.topic, stop):
                # A file a shard: whoever is killed here has lost nothing but this one.
                one = directory / f"{name.replace('/', '-')}.db"
                one.write_bytes(made)
                with Store(one, read_only=True) as shard:
                    copy_runs(shard, store, ui.log)
                progress.ended(name)
                merge([one], sweep, lambda _: None)
        return _whole(sweep, store, ui)


def _alike(client: distributed.Client, target: Target) -> dict[str, Mapping[str, Any]]:
    """Return what each worker would test, and on what machine; raise `UsageError` if they differ."""
    try:
        found: dict[str, Mapping[str, Any]] = client.run(facts_of, loaded_by(target))
    except LeakcheckError as error:
        raise TargetError(f"--cluster: a worker cannot run {target.name}: {error}") from error
    except ImportError as error:
        raise UsageError(f"--cluster: a worker has no leakcheck, or another one: {error}") from error
    first, *others = found
    for other in others:
        for what in IDENTITY:
            if (mine := found[first].get(what)) != (theirs := found[other].get(what)):
                raise UsageError(
                    f"--cluster: its workers are not alike: {what} is {mine!r} at {first} and {theirs!r} at {other}; "
                    "use workers of one kind"
                )
    return found


def _kept(
    store: Store, campaign: Campaign[Any, Any], target: Target, whole: SweepOptions, facts: Mapping[str, Any]
) -> tuple[list[Run], int]:
    """Return the shards of the last such sweep that was cut off, and how many it was divided into."""
    common = msgspec.to_builtins(whole)
    groups: dict[int, list[Run]] = {}
    for run in store.runs():
        same = (run.command, run.target, run.options | {"shard": "1/1"}) == (campaign.name, target.name, common)
        of = int(str(run.options.get("shard", "1/1")).partition("/")[2])
        if same and all({**run.tested, **run.machine}.get(what) == facts.get(what) for what in IDENTITY):
            groups.setdefault(of, []).append(run)
    # A whole sweep, which begins when its first shard did, has more trials than that one.
    last = max(groups.items(), key=lambda one: max(run.began for run in one[1]), default=(0, []))
    shards = ended_shards(last[1]) if last[0] > 1 else []
    return (shards, last[0]) if len(shards) < last[0] else ([], 0)


def _made(
    client: distributed.Client,
    campaign: Campaign[Any, Any],
    target: Target,
    whole: SweepOptions,
    shards: Sequence[str],
    workers: Sequence[str],
    topic: str,
    stop: Stop,
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the store of each shard as it ends."""
    futures, ended = {}, threading.Event()
    for number, (name, worker) in enumerate(zip(shards, [*workers] * len(shards), strict=False)):
        options = msgspec.json.encode(msgspec.structs.replace(whole, shard=name))
        local = client.cluster is not None
        cpus = _share(number % len(workers), len(workers)) if local else ()
        shard = Shard(campaign.name, loaded_by(target), options, topic, cpus)
        key = f"leakcheck-{topic}-{name}"
        future = client.submit(run_shard, shard, key=key, workers=[worker], allow_other_workers=True, pure=False)
        future.add_done_callback(lambda _: ended.set())
        futures[future] = name
    try:
        while futures:
            if stop():
                raise StoppedError(f"{target.name}: interrupted; shards that had ended are kept: go on by --resume")
            ended.wait(_LOOK_S)
            ended.clear()
            for future in [one for one in futures if one.done()]:
                name = futures.pop(future)
                yield name, _result(future, target, name)
    finally:
        client.cancel([*futures], force=True)


def _share(number: int, of: int) -> tuple[int, ...]:
    """Return the processors of a worker of this machine; none if there are not enough to divide."""
    there = sorted(os.sched_getaffinity(0))
    return tuple(there[number::of]) if of <= len(there) else ()


def _result(future: "distributed.Future[bytes]", target: Target, name: str) -> bytes:
    try:
        found: bytes = future.result()
    except distributed.KilledWorker as error:
        times = error.allowed_failures + 1
        raise TargetError(f"{target.name}: shard {name}: {times} workers have died of it, or with it") from error
    except distributed.CancelledError as error:
        raise TargetError(f"{target.name}: shard {name}: the cluster has gone") from error
    except LeakcheckError as error:
        raise TargetError(f"{target.name}: shard {name}: {error}") from error
    return found


def _whole(sweep: Store, store: Store, ui: Ui) -> Result:
    """Return the result of the whole sweep, which is added to `store`, too."""
    runs = sweep.runs()
    joined = next((run for run in reversed(runs) if run.options["shard"] == "1/1"), None)
    if joined is None:
        for run in runs:
            if run.state != "ended":
                result = sweep.result(run)
                why = result.error if result is not None else "was cut off"
                raise TargetError(f"{run.target}: shard {run.options['shard']} has not ended: {why}")
        raise TargetError("the shards are no whole sweep")
    copy_runs(sweep, store, ui.log, only={joined.uid})
    number = next(run.id for run in store.runs() if run.uid == joined.uid)
    ui.log(f"{joined.command}: the whole sweep is run {number} of {store.path}")
    result = sweep.result(joined)
    assert result is not None  # noqa: S101 - it was judged just now
    return result


class _Progress:
    """Shows how far all shards are, from what the workers report."""

    def __init__(self, client: distributed.Client, ui: Ui, of: int) -> None:
        self.topic = f"leakcheck-{secrets.token_hex(8)}"
        self._client, self._ui, self._of = client, ui, of
        self._made: dict[str, tuple[int, int]] = {}
        self._ended: set[str] = set()
        self._due = time.monotonic() + _SHOWN_S

    def __enter__(self) -> Self:
        self._client.subscribe_topic(self.topic, self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(self.topic)

    def ended(self, shard: str) -> None:
        """Note that the store of a shard is here."""
        self._ended.add(shard)
        self._ui.log(f"shard {shard} has ended, {len(self._ended)} of {self._of}")

    def _seen(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        if told["what"] == "began":
            again = " again: its worker has gone" if told["shard"] in self._made else ""
            self._ui.log(f"shard {told['shard']} begins{again} on {told['worker']}")
        self._made[told["shard"]] = told["made"], told["wanted"] or 0
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _SHOWN_S
            made, wanted = (sum(one) for one in zip(*self._made.values(), strict=True))
            self._ui.log(f"{made} of {wanted} trials in {len(self._made)} shards")
