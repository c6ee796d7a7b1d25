"""Attributes residue to submissions that ran in parallel in one arena: by evidence, never by a digit in a name."""

import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from leakcheck.report import Leak
from leakcheck.targets import Target
from leakcheck.trials.host import Host, Running
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import place_of

MARK = "LEAKCHECK_SUBMISSION"
"""The environment variable of each launch that names its submission."""
RESPAWNING = "respawning"

# The kernel counts a process's start time in hundredths of a second.
_TICK = 0.02
_MOST_PARENTS = 100


class Run(msgspec.Struct):
    """One submission: its number, box and round, and when it began (seconds since 1970).

    `name` is the name of its box, and `late` whether leakcheck ended it for running too long.
    """

    number: int
    box: int
    round: int = 0
    began: float = 0
    name: str = ""
    late: bool = False


class SharedRemnant(msgspec.Struct):
    """One item left in an arena since a round: `runs` are the submissions that can have left it, one if certain.

    `tied` is the evidence: the ``mark`` in the environment of a process, of an ancestor or of a holder, or its session;
    a path of only one ``box``; the ``time``, since a run cannot have left what is older than the run; only the
    ``round``; or the ``replay`` of each submission alone. `each`: every one of `runs` left such an item. `gone` is the
    round whose observation no longer showed it; None while it exists. `bounded`: at the end, there are no more of the
    same than after the first round. `late`: only runs that leakcheck ended can have left it. `names` are the names of
    the boxes of `runs`.
    """

    leak: Leak
    round: int
    runs: list[int]
    tied: str
    gone: int | None = None
    bounded: bool = False
    each: bool = False
    late: bool = False
    names: list[tuple[int, str]] = []

    @property
    def damaged(self) -> bool:
        """Whether it existed before any run and was changed or removed; a later repair does not undo that."""
        return self.leak.class_ == "damaged"

    @property
    def stays(self) -> bool:
        """Whether it is a leak: it exists, and there was more of the same with every round."""
        return not self.late and (self.damaged or (self.gone is None and not self.bounded))


class Attribution:
    """Ties residue in a `host` to the submissions that ran in the boxes of `sessions`."""

    def __init__(self, target: Target, host: Host, sessions: Sequence[Session]) -> None:
        self._target, self._host, self._sessions = target, host, sessions
        # Submission by session, identified by its leader's process id inside; every launched command starts one.
        self._began: dict[int, int] = {}

    def started(self, process: Running, run: Run) -> None:
        """Record that `process`, a session leader, belongs to `run`."""
        self._began[process.inside] = run.number

    def tied(self, leak: Leak, number: int, runs: Sequence[Run], before: Sequence[SharedRemnant]) -> SharedRemnant:
        """Return the residue, each item with those of `runs`, or of the runs of `before`, that can have left it."""
        # A chain of short-lived processes is reported as one, whichever submission's process was observed.
        if leak.class_ != RESPAWNING and (marked := self._marked(leak)) is not None:
            found, tied = [run for run in runs if run.number == marked], "mark"
            left = SharedRemnant(leak, number, [marked], tied)
        else:
            found, tied = self._of_box(leak, runs)
            if leak.since:
                since = datetime.datetime.fromisoformat(leak.since).timestamp()
                # Runs that had ended by then stay possible: a process that they left running may have made it.
                then = [run for run in found if run.began - _TICK <= since]
                if then and len(then) < len(found):
                    found, tied = then, f"{tied} and time" if tied == "box" else "time"
            numbers = [run.number for run in found]
            left = SharedRemnant(
                leak, number, numbers if tied.startswith("box") else [*numbers, *_survivors(number, before)], tied
            )
        left.late = bool(found) and all(run.late for run in found) and len(left.runs) == len(found)
        left.names = [(run.box, run.name) for run in found if run.name]
        return left

    def _of_box(self, leak: Leak, runs: Sequence[Run]) -> tuple[list[Run], str]:
        """Return those of `runs` whose box alone owns the path; all of them if no box does."""
        path = place_of(leak)
        for session in self._sessions:
            mine = [run for run in runs if run.box == session.box.number]
            boxes = [msgspec.structs.replace(session.box, name=run.name) for run in mine]
            if named := [run for run, box in zip(mine, boxes, strict=True) if self._target.names_box(path, box)]:
                return named, "box"
            work = str(session.box.work)
            if mine and (path == work or path.startswith(f"{work}/") or self._target.owns(path, session.box)):
                return mine, "box"
        return list(runs), "round"

    def _marked(self, leak: Leak) -> int | None:
        """Return the submission whose mark is in the process itself, in an ancestor, or in a holder."""
        resource = leak.evidence.get("resource", {})
        pids = [value for value in (resource.get("pid"), resource.get("ppid")) if isinstance(value, int)]
        pids += [pid for one in _records(leak.evidence) if isinstance(pid := one.get("pid"), int)]
        for pid in dict.fromkeys(pids):
            for one in self._line(pid):
                if (marked := self._mark_of(one)) is not None:
                    return marked
        return self._began.get(resource.get("session", 0))

    def _line(self, pid: int) -> Iterator[int]:
        """Yield `pid` and its ancestors, except process 1."""
        for _ in range(_MOST_PARENTS):
            if pid <= 1:
                return
            yield pid
            try:
                status = self._host.read(Path(f"/proc/{pid}/status"))
            except OSError:
                return
            parent = re.search(rb"^PPid:\t(\d+)$", status, re.MULTILINE)
            pid = int(parent[1]) if parent else 0

    def _mark_of(self, pid: int) -> int | None:
        found = re.search(rb"(?:^|\0)" + MARK.encode() + rb"=(\d+)(?:\0|$)", self._host.environment(pid))
        return int(found[1]) if found else None


def _records(value: object) -> Iterator[dict[str, object]]:
    """Yield the records inside `value`, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield value
    for one in inner:
        yield from _records(one)


def _survivors(number: int, before: Sequence[SharedRemnant]) -> list[int]:
    """Return the submissions of earlier rounds with a process that still ran in this one: it may have left more."""
    alive = [one for one in before if one.leak.kind == "process" and one.gone in (None, number)]
    return sorted({run for one in alive if one.round < number for run in one.runs})
