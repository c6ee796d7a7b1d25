"""Puts the runs of several stores into one, and the shards of a sweep together."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leakcheck.campaigns import CAMPAIGNS, Criterion, Result
from leakcheck.campaigns.campaign import Made
from leakcheck.campaigns.criteria import VERDICTS, worst_verdict
from leakcheck.campaigns.engine import judged
from leakcheck.campaigns.sweep import Sweep
from leakcheck.errors import UsageError
from leakcheck.evidence.runs import Run
from leakcheck.evidence.store import Store, StoreRecording
from leakcheck.report import Verdict
from leakcheck.targets import Target, load
from leakcheck.trials.crash_points import Points

if TYPE_CHECKING:
    from leakcheck.campaigns.result import Residue

_TESTED = ("version", "leakcheck", "adapter", "contents")
_MACHINE = ("kernel", "machine", "cgroups", "uid")
IDENTITY = (*_TESTED, *_MACHINE)
"""Facts of what was tested and of the machine: results of different ones are not put together."""
_TABLES = ("trials", "findings", "samples")
_FIXED = "uid, part, command, target, version, options, tested, began"
_CHANGING = "ended, took, wanted, state, verdict, kept, settings, changed, result"


class Merged(msgspec.Struct, frozen=True):
    """What came of the sweeps of merged stores: runs of `whole` ones, and the shards that ended of all others."""

    whole: list[Run]
    parts: list[Run]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict: a sweep that lacks shards is unknown at best."""
        whole = [run.verdict or "unknown" for run in self.whole]
        parts: list[Verdict] = ["leaked" if run.verdict == "leaked" else "unknown" for run in self.parts]
        return worst_verdict([*whole, *parts])


def merge(stores: Sequence[Path], into: Store, log: Callable[[str], None]) -> Merged:
    """Copy all runs of `stores` that `into` lacks; then add one run for each sweep of which all shards are there.

    A run that was cut off is replaced by the same run of another store that went on. Of a shard that was made several
    times, one that leaked counts; else the last. Returns what came of the sweeps of which `stores` have a shard.

    Raises:
        UsageError: a store cannot be read, or shards of one sweep are of different targets or machines.
    """
    named: set[str] = set()
    for path in stores:
        if path.resolve() == into.path.resolve():
            raise UsageError(f"merge {path}: is the store to merge into; name only the others")
        with Store(path, read_only=True) as source:
            copied = copy_runs(source, into, log)
            named |= {run.uid for run in source.runs()}
            log(f"{path}: {copied} of {len(source.runs())} runs copied")
    return _whole_sweeps(into, named, log)


def copy_runs(source: Store, into: Store, log: Callable[[str], None], *, only: AbstractSet[str] | None = None) -> int:
    """Copy all runs that `into` lacks or has less of, or `only` those of these uids; return how many."""
    copied = 0
    numbers: dict[int, int] = {}
    known = {run.uid: run for run in into.runs()}
    for run in source.runs():
        if only is not None and run.uid not in only:
            continue
        old = known.get(run.uid)
        if old is not None and _progress(run) <= _progress(old):
            numbers[run.id] = old.id
            continue
        if old is not None and not into.database.lock(old.id):
            log(f"{into.path}: run {old.id} is still running, and stays as it is")
            numbers[run.id] = old.id
            continue
        numbers[run.id] = _copy_run(source, into, run, old, None if run.parent is None else numbers[run.parent])
        copied += 1
    return copied


def _progress(run: Run) -> tuple[bool, int, int]:
    """Return how much a run has, to compare copies that went on apart: of ended ones, the worse counts."""
    ended = run.state == "ended"
    return ended, VERDICTS.index(run.verdict or "unknown") if ended else 0, run.trials


def _copy_run(source: Store, into: Store, run: Run, old: Run | None, parent: int | None) -> int:
    """Copy a run, in the place of the `old` one if there is one, and return its number there."""
    facts = msgspec.json.encode(run.machine).decode()
    row = source.database.rows(f"SELECT {_FIXED}, {_CHANGING} FROM runs WHERE id = ?", [run.id])[0]
    fixed, changing = row[: _FIXED.count(",") + 1], row[_FIXED.count(",") + 1 :]
    if old is None:
        changes: list[tuple[str, Sequence[Any]]] = [
            ("INSERT OR IGNORE INTO machines (facts) VALUES (?)", [facts]),
            (
                f"INSERT INTO runs ({_FIXED}, {_CHANGING}, parent, machine) VALUES ({_marks(row)}, ?,"
                " (SELECT id FROM machines WHERE facts = ?))",
                [*fixed, *changing, parent, facts],
            ),
        ]
    else:
        columns = ", ".join(f"{name.strip()} = ?" for name in _CHANGING.split(","))
        changes = [
            (f"UPDATE runs SET {columns} WHERE id = ?", [*changing, old.id]),
            *((f"DELETE FROM {table} WHERE run = ?", [old.id]) for table in _TABLES),
        ]
    added = []
    for table in _TABLES:
        if rows := source.database.rows(f"SELECT * FROM {table} WHERE run = ?", [run.id]):
            text = f"INSERT INTO {table} VALUES ((SELECT id FROM runs WHERE uid = ?), {_marks(rows[0][1:])})"
            added.append((text, [[run.uid, *one[1:]] for one in rows]))
    # At once: a run without some of its trials would be judged without them.
    into.database.replace(changes, *added)
    ((number,),) = into.database.rows("SELECT id FROM runs WHERE uid = ?", [run.uid])
    return int(number)


def _marks(row: Sequence[Any]) -> str:
    return ", ".join("?" * len(row))


def _whole_sweeps(store: Store, named: AbstractSet[str], log: Callable[[str], None]) -> Merged:
    """Add one run for each sweep of which all shards have ended, unless there is one; of those with a `named` run."""
    sweeps: dict[tuple[str, str, str, int], list[Run]] = {}
    for run in store.runs():
        _, _, count = str(run.options.get("shard", "1/1")).partition("/")
        if run.command in CAMPAIGNS and int(count) > 1:
            common = msgspec.json.encode(run.options | {"shard": "1/1"}, order="sorted").decode()
            sweeps.setdefault((run.command, run.target, common, int(count)), []).append(run)
    merged = Merged([], [])
    for (command, name, _, of), alike in sweeps.items():
        # A store may have sweeps of several versions.
        groups = _by_identity(alike)
        for group in groups:
            if named.isdisjoint(run.uid for run in group):
                continue
            shards = ended_shards(group)
            if len(shards) == of:
                merged.whole.append(_joined(store, shards, log))
                continue
            if len(mixed := ended_shards(alike)) == of and all(len(ended_shards(one)) < of for one in groups):
                _check_alike(store, mixed)
            there = {_number(run) for run in shards}
            missing = ", ".join(f"{number}/{of}" for number in range(1, of + 1) if number not in there)
            log(f"{command} {name}: shards {missing} are missing, or have not ended")
            merged.parts.extend(group)
    return merged


def _number(run: Run) -> int:
    return int(str(run.options["shard"]).partition("/")[0])


def _by_identity(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs by what was tested, and on what machine."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        facts = [[run.tested.get(what) for what in _TESTED], [run.machine.get(what) for what in _MACHINE]]
        found.setdefault(msgspec.json.encode(facts, order="sorted").decode(), []).append(run)
    return [*found.values()]


def ended_shards(runs: Sequence[Run]) -> list[Run]:
    """Return the run of each shard, if it has ended: of several, one that leaked, else the last that began."""
    found: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.began):
        if not ((old := found.get(_number(run))) is not None and old.verdict == "leaked" != run.verdict):
            found[_number(run)] = run
    return [found[number] for number in sorted(found) if found[number].state == "ended"]


def _check_alike(store: Store, runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what in _TESTED:
            if run.tested.get(what) != first.tested.get(what):
                raise UsageError(
                    f"store {store.path}: the shards {first.id} and {run.id} are of different targets: {what} is "
                    f"{first.tested.get(what)!r} and {run.tested.get(what)!r}; merge only those of one"
                )
        for what in _MACHINE:
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


def _joined(store: Store, runs: Sequence[Run], log: Callable[[str], None]) -> Run:
    """Return the run of the whole sweep, a new one unless there is one, judged from the trials of all shards."""
    first = runs[0]
    # A shard that was replaced by its copy that went on makes another whole.
    facts = [(run.uid, run.ended, run.trials, run.verdict) for run in runs]
    uid = sha256(msgspec.json.encode(facts)).hexdigest()[:16]
    old = next((run for run in store.runs() if run.uid == uid), None)
    if old is not None and old.state == "ended":
        return old
    campaign = CAMPAIGNS[first.command]
    if not isinstance(campaign, Sweep):
        raise UsageError(f"run {first.id}: {first.command} has no shards")
    target = _target(first)
    options = msgspec.convert(first.options | {"shard": "1/1"}, type=campaign.options)
    results = [result for run in runs if (result := store.result(run)) is not None and result.trials]
    trials = [trial for run in runs for trial in store.trials(run)]
    made: Made[Any, Any] = Made(target=target, options=options, trials=trials, facts=None, executor=None)
    recorded = [msgspec.json.decode(store.text(run, "kept"), type=Points) for run in runs]
    made.facts = _all_points(recorded)
    made.wanted, made.took = len(trials), sum(run.took for run in runs)
    made.explanations = {
        one.plan: one.explanation for result in results for one in result.findings if one.explanation is not None
    }
    tried = {trial.case.plan for trial in trials}
    # Each shard has recorded its own points: what one of them knows may be another one's to try.
    plans = dict.fromkeys(plan for one in recorded for plan in campaign.select(options, one.points))
    rest = [plan for plan in plans if plan not in tried]
    # With these options, no sweep tries all.
    if rest and not (options.iterations or options.within or options.plan):
        made.coverage["points"] = f"{len(rest)} plans of the whole sweep are in no shard, such as {rest[0]}"
    names = {criterion.name for check in campaign.criteria(options) for criterion, _ in check(made)}
    result = judged(campaign, made, first.version, _Machines(results, names))
    # Whatever the shards were judged by, together they are no better than one of them.
    verdict = worst_verdict([result.verdict, *(one.verdict for one in results)])
    result = msgspec.structs.replace(result, verdict=verdict)
    # One that is not ended was cut off while it was added.
    run = old or store.add(msgspec.structs.replace(first, uid=uid, options=msgspec.to_builtins(options)))
    StoreRecording(store, run).end(trials, result, msgspec.json.encode(made.facts), made.took)
    log(f"{first.command} {first.target}: {len(runs)} shards are run {run.id}")
    return store.run(run.id)


def _all_points(recorded: Sequence[Points]) -> Points:
    """Return the points of all recordings, each once; what is steady in one of them is not unsteady."""
    points = {(one.point.stage, str(one.point)): one for each in reversed(recorded) for one in reversed(each.points)}
    unsteady = {(one.point.stage, str(one.point)): one for each in recorded for one in each.unsteady}
    rest = [one for name, one in unsteady.items() if name not in points]
    notes = dict.fromkeys(note for each in recorded for note in each.notes)
    return Points([*reversed(points.values())], rest, [*notes])


def _target(run: Run) -> Target:
    try:
        return load(run.tested["path"])
    except UsageError as error:
        raise UsageError(f"run {run.id}: its target is needed to put its shards together: {error}") from error
