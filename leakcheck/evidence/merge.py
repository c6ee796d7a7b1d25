"""Puts the runs of several stores into one, and the shards of a sweep together."""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leakcheck.campaigns import CAMPAIGNS, Criterion, Result
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.engine import judged
from leakcheck.campaigns.sweep import Sweep
from leakcheck.errors import UsageError
from leakcheck.evidence.runs import Run
from leakcheck.evidence.store import Store, StoreRecording
from leakcheck.report import Verdict
from leakcheck.targets import Target, load

if TYPE_CHECKING:
    from leakcheck.campaigns.result import Residue

_TABLES = ("trials", "findings", "samples")
_FIXED = "uid, part, command, target, version, options, tested, began"
_CHANGING = "ended, took, wanted, state, verdict, kept, result"


def merge(stores: Sequence[Path], into: Store, log: Callable[[str], None]) -> list[Run]:
    """Copy all runs of `stores` that `into` lacks; then add one run for each sweep of which all shards are there.

    A run that was cut off is replaced by the same run of another store that went on. Returns the runs of whole sweeps.

    Raises:
        UsageError: a store cannot be read, or shards of one sweep are of different targets or machines.
    """
    for path in stores:
        if path.resolve() == into.path.resolve():
            raise UsageError(f"merge {path}: is the store to merge into; name only the others")
        with Store(path, read_only=True) as source:
            copied = _copy(source, into)
            log(f"{path}: {copied} of {len(source.runs())} runs copied")
    return [*_whole_sweeps(into, log)]


def _copy(source: Store, into: Store) -> int:
    copied = 0
    numbers: dict[int, int] = {}
    known = {run.uid: run for run in into.runs()}
    for run in source.runs():
        old = known.get(run.uid)
        if old is not None and _progress(run) <= _progress(old):
            numbers[run.id] = old.id
            continue
        numbers[run.id] = _copy_run(source, into, run, old, None if run.parent is None else numbers[run.parent])
        copied += 1
    return copied


def _progress(run: Run) -> tuple[bool, int]:
    return run.state == "ended", run.trials


def _copy_run(source: Store, into: Store, run: Run, old: Run | None, parent: int | None) -> int:
    """Copy a run, in the place of the `old` one if there is one, and return its number there."""
    facts = msgspec.json.encode(run.machine).decode()
    row = source.database.rows(f"SELECT {_FIXED}, {_CHANGING} FROM runs WHERE id = ?", [run.id])[0]
    fixed, changing = row[: _FIXED.count(",") + 1], row[_FIXED.count(",") + 1 :]
    if old is None:
        number = into.database.change(
            ("INSERT OR IGNORE INTO machines (facts) VALUES (?)", [facts]),
            (
                f"INSERT INTO runs ({_FIXED}, {_CHANGING}, parent, machine) VALUES ({_marks(row)}, ?,"
                " (SELECT id FROM machines WHERE facts = ?))",
                [*fixed, *changing, parent, facts],
            ),
        )
    else:
        number = old.id
        columns = ", ".join(f"{name.strip()} = ?" for name in _CHANGING.split(","))
        into.database.change(
            (f"UPDATE runs SET {columns} WHERE id = ?", [*changing, number]),
            *((f"DELETE FROM {table} WHERE run = ?", [number]) for table in _TABLES),
        )
    for table in _TABLES:
        if rows := source.database.rows(f"SELECT * FROM {table} WHERE run = ?", [run.id]):
            added = f"INSERT INTO {table} VALUES ({_marks(rows[0])})"
            into.database.replace([], added, [[number, *one[1:]] for one in rows])
    return number


def _marks(row: Sequence[Any]) -> str:
    return ", ".join("?" * len(row))


def _whole_sweeps(store: Store, log: Callable[[str], None]) -> Iterator[Run]:
    """Add one run for each sweep of which all shards have ended, unless there is one, and yield it."""
    sweeps: dict[tuple[str, str, str, int], dict[int, Run]] = {}
    for run in store.runs():
        number, _, count = str(run.options.get("shard", "1/1")).partition("/")
        if run.command in CAMPAIGNS and int(count) > 1 and run.state == "ended":
            common = msgspec.json.encode(run.options | {"shard": "1/1"}, order="sorted").decode()
            sweeps.setdefault((run.command, run.target, common, int(count)), {})[int(number)] = run
    for (command, name, _, shard_count), shards in sweeps.items():
        if len(shards) < shard_count:
            missing = ", ".join(
                f"{number}/{shard_count}" for number in range(1, shard_count + 1) if number not in shards
            )
            log(f"{command} {name}: shards {missing} are missing")
            continue
        runs = [shards[number] for number in sorted(shards)]
        uid = sha256(" ".join(run.uid for run in runs).encode()).hexdigest()[:16]
        if found := [run for run in store.runs() if run.uid == uid]:
            yield found[0]
            continue
        _check_alike(store, runs)
        yield _joined(store, runs, uid)


def _check_alike(store: Store, runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what in ("version", "leakcheck", "adapter"):
            if run.tested.get(what) != first.tested.get(what):
                raise UsageError(
                    f"store {store.path}: the shards {first.id} and {run.id} are of different targets: {what} is "
                    f"{first.tested.get(what)!r} and {run.tested.get(what)!r}; merge only those of one"
                )
        for what in ("kernel", "machine", "cgroups", "uid"):
            if run.machine.get(what) != first.machine.get(what):
                raise UsageError(
                    f"store {store.path}: the shards {first.id} and {run.id} are of different machines: {what} is "
                    f"{first.machine.get(what)!r} and {run.machine.get(what)!r}; merge only those of alike ones"
                )


class _Machines:
    """What was found out of the machines of all shards."""

    def __init__(self, results: Sequence[Result], names: set[str]) -> None:
        self._results, self._names = results, names
        self.untied: list[Residue] = []
        self.gaps = {kind: why for result in results for kind, why in result.coverage.items()}

    def judge(self) -> Iterator[tuple[Criterion, Verdict]]:
        """Yield the criteria that the trials do not decide, each with the sum of what was measured."""
        found: dict[str, list[Criterion]] = {}
        for result in self._results:
            for criterion in result.criteria:
                if criterion.name not in self._names:
                    found.setdefault(criterion.name, []).append(criterion)
        for name, alike in found.items():
            passed = False if any(one.passed is False for one in alike) else alike[0].passed
            measured = sum(one.measured for one in alike)
            yield Criterion(name=name, passed=passed, measured=measured, limit=alike[0].limit), "leaked"

    def report(self) -> msgspec.Raw:
        """Return null: shards do not run on a live host."""
        return msgspec.Raw(b"null")


def _joined(store: Store, runs: Sequence[Run], uid: str) -> Run:
    """Return a new run of the whole sweep, judged from the trials of all shards."""
    first = runs[0]
    campaign = CAMPAIGNS[first.command]
    if not isinstance(campaign, Sweep):
        raise UsageError(f"run {first.id}: {first.command} has no shards")
    target = _target(first)
    options = msgspec.convert(first.options | {"shard": "1/1"}, type=campaign.options)
    results = [result for run in runs if (result := store.result(run)) is not None]
    trials = [trial for run in runs for trial in store.trials(run)]
    made: Made[Any, Any] = Made(target=target, options=options, trials=trials, facts=None, executor=None)
    kept = store.text(first, "kept").encode()
    campaign.go_on(made, kept)
    made.wanted, made.took = len(trials), sum(run.took for run in runs)
    made.explanations = {
        one.plan: one.explanation for result in results for one in result.findings if one.explanation is not None
    }
    tried = {trial.case.plan for trial in trials}
    if rest := [plan for plan in campaign.shard(options, made.facts.points) if plan not in tried]:
        made.coverage["points"] = f"{len(rest)} plans of the whole sweep are in no shard, such as {rest[0]}"
    names = {criterion.name for check in campaign.criteria(options) for criterion, _ in check(made)}
    result = judged(campaign, made, first.version, _Machines(results, names))
    run = store.add(msgspec.structs.replace(first, uid=uid, options=msgspec.to_builtins(options)))
    StoreRecording(store, run).end(trials, result, kept, made.took)
    return store.run(run.id)


def _target(run: Run) -> Target:
    try:
        return load(run.tested["path"])
    except UsageError as error:
        raise UsageError(f"run {run.id}: its target is needed to put its shards together: {error}") from error
