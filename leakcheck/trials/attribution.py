"""Whose residue it is, of submissions that ran side by side in one arena: by evidence, never by a digit in a name."""

import contextlib
import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from leakcheck.report import Leak
from leakcheck.targets import Box, Target
from leakcheck.trials.host import Host, Running
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import place_of

__all__ = ["MARK", "RESPAWNING", "Attribution", "Run", "SharedRemnant"]

MARK = "LEAKCHECK_SUBMISSION"
"""In the environment of each launch: which submission it is."""
RESPAWNING = "respawning"

# The kernel counts a process' start in hundredths of a second.
_TICK = 0.02
_MOST_PARENTS = 100


class Run(msgspec.Struct):
    """One submission: its number, box and round, and when it began (seconds since 1970).

    `name` is the box's name in it, and `late` whether it was ended for running too long.
    """

    number: int
    box: int
    round: int = 0
    began: float = 0
    name: str = ""
    late: bool = False


class SharedRemnant(msgspec.Struct):
    """One thing left in an arena since a round: `runs` are the submissions that it can be of, one when that is certain.

    `tied` says by what: the ``mark`` in the environment of a process, of one that it descends from or of a holder, or
    its session; a place of the ``box`` alone; the ``time``, as what is older than a run is not of it; the ``round``
    alone; or the ``replay`` of each submission alone. `each`: every one of `runs` left such a thing. `gone` is the
    round whose look no longer showed it; None while it is there. `bounded`: there is no more of the same at the end
    than after the first round. `late`: it can only be of runs that leakcheck ended. `names` are those of the boxes of
    `runs`.
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
        """Whether it was there before any run, and was changed or removed: put right later, it still was."""
        return self.leak.class_ == "damaged"

    @property
    def stays(self) -> bool:
        """Whether it is a leak: it is there, and there was more of the same with every round."""
        return not self.late and (self.damaged or (self.gone is None and not self.bounded))


class Attribution:
    """What ties residue in a `host` to the submissions that ran in the boxes of `sessions`."""

    def __init__(self, target: Target, host: Host, sessions: Sequence[Session]) -> None:
        self._target, self._host, self._sessions = target, host, sessions
        # Submission by the session that a command of it began; each is one, by its process id inside.
        self._began: dict[int, int] = {}

    def started(self, process: Running, run: Run) -> None:
        """Note that `process`, which leads a session, is of `run`."""
        # Gone already, it may have been reaped: then what it left is known by other things.
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            self._began[int(status.partition("\nNSpid:")[2].split("\n", 1)[0].split()[-1])] = run.number

    def tied(self, leak: Leak, number: int, runs: Sequence[Run], before: Sequence[SharedRemnant]) -> SharedRemnant:
        """Return what is left, with those of `runs`, or of the runs of what was left `before`, that it can be of."""
        # What lives on in ever new processes is reported as one, whichever submission's it was that was seen.
        if leak.class_ != RESPAWNING and (marked := self._marked(leak)) is not None:
            found, tied = [run for run in runs if run.number == marked], "mark"
            left = SharedRemnant(leak, number, [marked], tied)
        else:
            found, tied = self._of_box(leak, runs)
            if leak.since:
                since = datetime.datetime.fromisoformat(leak.since).timestamp()
                # Not those either that had ended by then: what they left running may have made it.
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
        """Return those of `runs` whose box alone has such a place; all of them where it is no box's place."""
        path = place_of(leak)
        for session in self._sessions:
            mine = [run for run in runs if run.box == session.box.number]
            named = [run for run in mine if self._target.names_box(path, _box_of(session, run))]
            if named:
                return named, "box"
            work = str(session.box.work)
            if mine and (path == work or path.startswith(f"{work}/") or self._target.owns(path, session.box)):
                return mine, "box"
        return list(runs), "round"

    def _marked(self, leak: Leak) -> int | None:
        """Return the submission by whose mark a process is known that it is, descends from, or is held by."""
        resource = leak.evidence.get("resource", {})
        pids = [value for value in (resource.get("pid"), resource.get("ppid")) if isinstance(value, int)]
        pids += [pid for one in _records(leak.evidence) if isinstance(pid := one.get("pid"), int)]
        for pid in dict.fromkeys(pids):
            for one in self._line(pid):
                if (marked := self._mark_of(one)) is not None:
                    return marked
        return self._began.get(resource.get("session", 0))

    def _line(self, pid: int) -> Iterator[int]:
        """Yield `pid` and those that it descends from, process 1 apart."""
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
        try:
            environ = self._host.read(Path(f"/proc/{pid}/environ"))
        except OSError:
            return None
        found = re.search(rb"(?:^|\0)" + MARK.encode() + rb"=(\d+)(?:\0|$)", environ)
        return int(found[1]) if found else None


def _box_of(session: Session, run: Run) -> Box:
    return msgspec.structs.replace(session.box, name=run.name)


def _records(value: object) -> Iterator[dict[str, object]]:
    """Yield the records within `value`, however deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield value
    for one in inner:
        yield from _records(one)


def _survivors(number: int, before: Sequence[SharedRemnant]) -> list[int]:
    """Return the submissions of earlier rounds of which something ran into this one: it may have left more."""
    alive = [one for one in before if one.leak.kind == "process" and one.gone in (None, number)]
    return sorted({run for one in alive if one.round < number for run in one.runs})
