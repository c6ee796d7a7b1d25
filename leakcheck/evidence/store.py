"""The store: runs, their trials and findings, and the machines on which they were made."""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from leakcheck.campaigns import CAMPAIGNS, Campaign, Result
from leakcheck.campaigns.campaign import Options
from leakcheck.campaigns.machine import Machine
from leakcheck.campaigns.recording import Recording
from leakcheck.errors import UsageError
from leakcheck.evidence.database import Database
from leakcheck.evidence.machine import machine_facts, tested_facts
from leakcheck.evidence.resources import Sample, Sampler
from leakcheck.evidence.runs import VERIFY, Run, kind_of, with_records
from leakcheck.evidence.stored import StoredRecords
from leakcheck.targets import Target
from leakcheck.trials.record import Record

# Seconds between two copies of what a campaign needs to go on, at least, and as a multiple of what one costs.
_LEAST_S = 0.5
_COST = 50
_SAMPLE_S = 5.0
_RUN = """
SELECT runs.id, uid, parent, part, command, target, version, options, tested, facts, began, ended, took,
    (SELECT count(*) FROM trials WHERE run = runs.id), wanted, state, verdict
FROM runs JOIN machines ON machines.id = machine
"""
_ADD_TRIAL = "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?, ?)"


class Store:
    """The store in the file at `path`, which is made if `create`. Several programs may use one at a time.

    Raises:
        UsageError: it cannot be used; the message says why.
    """

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        self.path = path
        self.database = Database(path, create=create, read_only=read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def runs(self) -> list[Run]:
        """Return all runs, in the order in which they began."""
        return [_run(row) for row in self.database.rows(f"{_RUN} ORDER BY runs.id")]

    def run(self, number: int) -> Run:
        """Return the run of this id; raise `UsageError` if there is none."""
        found = self.database.rows(f"{_RUN} WHERE runs.id = ?", [number])
        if not found:
            raise UsageError(f"store {self.path}: has no run {number}; `leakcheck runs` lists them")
        return _run(found[0])

    def parts(self, run: Run) -> list[Run]:
        """Return the campaigns of a ``verify``."""
        return [_run(row) for row in self.database.rows(f"{_RUN} WHERE parent = ? ORDER BY runs.id", [run.id])]

    def trials(self, run: Run) -> list[Any]:
        """Return its trials, in the order of their numbers."""
        kind = kind_of(run.command)
        rows = self.database.rows("SELECT trial FROM trials WHERE run = ? ORDER BY number", [run.id])
        return [self._decoded(text, kind) for (text,) in rows]

    def samples(self, run: Run) -> list[Sample]:
        """Return what leakcheck itself used meanwhile."""
        query = "SELECT at_s, rss_kib, fds, cpu_s, load FROM samples WHERE run = ? ORDER BY at_s"
        return [Sample(*row) for row in self.database.rows(query, [run.id])]

    def result(self, run: Run) -> Result | None:
        """Return its result; None if it was cut off before there was one."""
        text = self.text(run, "result")
        if not text or run.command == VERIFY:
            return None
        result = Result.from_json(text, f"{self.path}, run {run.id}")
        # Those of a soak are too many for a result.
        return result if CAMPAIGNS[run.command].streams else with_records(result, self.trials(run))

    def with_finding(self, name: str) -> list[Run]:
        """Return the runs that have a finding of this id."""
        query = f"{_RUN} WHERE runs.id IN (SELECT run FROM findings WHERE id = ?) ORDER BY runs.id"
        return [_run(row) for row in self.database.rows(query, [name])]

    def begin(
        self,
        command: str,
        target: Target,
        options: bytes,
        *,
        resume: bool,
        ended: bool = False,
        parent: int | None = None,
        part: str = "",
        log: Callable[[str], None] = lambda _: None,
    ) -> Run:
        """Return a new run; if `resume`, the last one of this command that was cut off, if there is one.

        With `ended`, one that has ended is as good: it is the last one all the same.

        Raises:
            UsageError: what was cut off was of another version of the target, of leakcheck or of the machine.
        """
        tested, machine = tested_facts(target), machine_facts()
        if resume and (old := self._last(command, target, options, parent, part, ended=ended)) is not None:
            for what, then, now in (("what is tested", old.tested, tested), ("the machine", old.machine, machine)):
                if changed := [name for name in now if now[name] != then.get(name)]:
                    raise UsageError(
                        f"store {self.path}: run {old.id} cannot go on: {what} has changed ({', '.join(changed)}); "
                        "omit --resume to begin anew"
                    )
            return old
        if resume and parent is None:
            log(f"nothing to resume in {self.path}: begins anew")
        run = Run(
            id=0,
            uid=secrets.token_hex(8),
            parent=parent,
            part=part,
            command=command,
            target=target.name,
            version=tested["version"],
            options=msgspec.json.decode(options),
            tested=tested,
            machine=machine,
            began=time.time(),
        )
        return self.add(run)

    def add(self, run: Run) -> Run:
        """Add a run, which this process has from now on; its id is a new one."""
        facts = msgspec.json.encode(run.machine).decode()
        values = {
            name: getattr(run, name) for name in ("uid", "parent", "part", "command", "target", "version", "began")
        }
        values |= {name: msgspec.json.encode(getattr(run, name)).decode() for name in ("options", "tested")}
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        number = self.database.change(
            ("INSERT OR IGNORE INTO machines (facts) VALUES (?)", [facts]),
            (
                f"INSERT INTO runs ({columns}, state, machine)"
                f" VALUES ({marks}, 'running', (SELECT id FROM machines WHERE facts = ?))",
                [*values.values(), facts],
            ),
        )
        if not self.database.lock(number):
            raise UsageError(f"store {self.path}: another process has taken run {number}; try again")
        return self.run(number)

    def is_cut_off(self, command: str, target: Target, options: bytes) -> bool:
        """Return whether the last run of this command has not ended."""
        query = "SELECT state FROM runs WHERE command = ? AND target = ? AND options = ? ORDER BY id DESC LIMIT 1"
        return [*self.database.rows(query, [command, target.name, options.decode()])] not in ([], [("ended",)])

    def forget(self, run: Run) -> None:
        """Remove a run of which nothing was recorded."""
        self.database.change(("DELETE FROM runs WHERE id = ?", [run.id]))

    def _last(
        self, command: str, target: Target, options: bytes, parent: int | None, part: str, *, ended: bool
    ) -> Run | None:
        ended = ended or parent is not None
        found = self.database.rows(
            f"{_RUN} WHERE command = ? AND target = ? AND options = ? AND parent IS ? AND part = ? "
            + ("" if ended else "AND state != 'ended' ")
            + "ORDER BY runs.id DESC LIMIT 1",
            [command, target.name, options.decode(), parent, part],
        )
        if not found:
            return None
        run = _run(found[0])
        if run.state == "ended":
            return run
        if not self.database.lock(run.id):
            raise UsageError(f"store {self.path}: run {run.id} is still running in another process; wait for it")
        # It may have ended meanwhile.
        run = self.run(run.id)
        return run if run.state != "ended" or ended else None

    def record(
        self,
        campaign: Campaign[Any, Any],
        target: Target,
        options: Options,
        *,
        resume: bool,
        parent: int | None = None,
        part: str = "",
        log: Callable[[str], None] = lambda _: None,
    ) -> "StoreRecording":
        """Return a recording of one campaign; if `resume`, of one that was cut off, if there is one."""
        given = msgspec.json.encode(options)
        run = self.begin(campaign.name, target, given, resume=resume, parent=parent, part=part, log=log)
        return StoreRecording(self, run)

    def text(self, run: Run, column: Literal["kept", "settings", "changed", "result"]) -> str:
        """Return what a campaign needs to go on, or its result as it is in the store; empty if there is none."""
        ((text,),) = self.database.rows(f"SELECT {column} FROM runs WHERE id = ?", [run.id])
        return text or ""

    def _decoded(self, text: str, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UsageError(f"store {self.path}: a trial cannot be read: {error}") from error


class StoreRecording(Recording):
    """Records one campaign in a store, one commit a trial."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store, self.run = store, run
        self.took = run.took
        self._began = time.monotonic() - self.took
        streams = CAMPAIGNS[run.command].streams
        self._stored = StoredRecords(store.database, run.id, self._began) if streams else None
        self.trials = store.trials(run) if self._stored is None else self._stored
        self.kept = store.text(run, "kept").encode()
        self.settings, self.changed = store.text(run, "settings"), store.text(run, "changed")
        self._changed: Callable[[], str] = lambda: self.changed
        if run.state == "ended":
            self.result = store.result(run)
        self._next = len(self.trials)
        self._due = self._sample_due = 0.0
        self._use = Sampler()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Forget a run that failed before its first trial."""
        if kind is not None and not self._next:
            self._store.forget(self.run)

    def watch(self, machine: Machine) -> None:
        """Note the settings of the machine, from which those at the end must not differ."""
        self._changed = machine.changed
        self._store.database.change(("UPDATE runs SET settings = ? WHERE id = ?", [machine.settings(), self.run.id]))

    def begin(self, wanted: int | None, valid: Sequence[Any]) -> None:
        """Note how many trials there will be, and that it runs; forget those that are not `valid` any more."""
        self._began = time.monotonic() - self.took
        if self._stored is not None:
            self._stored.began = self._began
        text = "UPDATE runs SET wanted = ?, state = 'running', result = NULL, verdict = NULL WHERE id = ?"
        begun = (text, [wanted, self.run.id])
        # Otherwise the number of their round would be that of a later one, which is observed.
        gone = []
        if self._stored is None:
            known = {one.id for one in valid if isinstance(one, Record)}
            gone = [[self.run.id, one.id] for one in self.trials if isinstance(one, Record) and one.id not in known]
        self._store.database.replace([begun], ("DELETE FROM trials WHERE run = ? AND number = ?", gone))

    def add(self, trial: Any, kept: Callable[[], bytes]) -> None:
        """Record a trial, and from time to time what the campaign needs to go on, and a sample of this process."""
        now = time.monotonic()
        at = round(now - self._began, 3)
        number = trial.id if isinstance(trial, Record) else self._next
        self._next += 1
        changes: list[tuple[str, Sequence[Any]]] = [(_ADD_TRIAL, _row(self.run.id, number, at, trial))]
        if now >= self._due:
            found = [at, kept().decode(), self._changed(), self.run.id]
            changes.append(("UPDATE runs SET took = ?, kept = ?, changed = ? WHERE id = ?", found))
            after = time.monotonic()
            self._due = after + max(_LEAST_S, _COST * (after - now))
        if now >= self._sample_due:
            row = [self.run.id, *msgspec.structs.astuple(self._use.sample(at))]
            changes.append(("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?)", row))
            self._sample_due = now + _SAMPLE_S
        self._store.database.change(*changes)

    def end(self, trials: Sequence[Any], result: Result, kept: bytes, took: float) -> None:
        """Replace the trials by `trials`, and record the result."""
        at = dict(self._times())
        last = max(at.values(), default=0.0)
        numbers = [trial.id if isinstance(trial, Record) else place for place, trial in enumerate(trials)]
        rows = (
            _row(self.run.id, number, at.get(number, last), trial)
            for number, trial in zip(numbers, trials, strict=True)
        )
        bare = msgspec.structs.replace(result, records=[])
        found = [
            (
                "INSERT INTO findings VALUES (?, ?, ?, ?, ?, ?)",
                [self.run.id, place, one.id, one.outcome, one.replay, text],
            )
            for place, one in enumerate(result.findings)
            for text in [msgspec.json.encode(one).decode()]
        ]
        state = "ended" if result.complete else "interrupted"
        closing = (
            "UPDATE runs SET state = ?, verdict = ?, result = ?, kept = ?, changed = ?, ended = ?, took = ?, wanted = ?"
            " WHERE id = ?",
            [
                state,
                result.verdict,
                bare.to_json(),
                kept.decode(),
                self._changed(),
                time.time(),
                round(took, 3),
                result.wanted,
                self.run.id,
            ],
        )
        clearing = [
            ("DELETE FROM trials WHERE run = ?", [self.run.id]),
            ("DELETE FROM findings WHERE run = ?", [self.run.id]),
        ]
        self._store.database.replace([*clearing, *found, closing], (_ADD_TRIAL, rows))

    def _times(self) -> list[tuple[int, float]]:
        rows = self._store.database.rows("SELECT number, at_s FROM trials WHERE run = ?", [self.run.id])
        return [(number, at) for number, at in rows]

    def samples(self) -> Sequence[Sample]:
        """Return what leakcheck used so far."""
        return self._store.samples(self.run)


def _row(run: int, number: int, at: float, trial: Any) -> list[Any]:
    what = trial.spec if isinstance(trial, Record) else str(trial.case.plan)
    return [run, number, at, what, trial.outcome, msgspec.json.encode(trial).decode()]


def _run(row: Sequence[Any]) -> Run:
    names = Run.__struct_fields__
    found = dict(zip(names, row, strict=True))
    for name in ("options", "tested", "machine"):
        found[name] = msgspec.json.decode(found[name])
    return msgspec.convert(found, type=Run)
