"""An arena with many boxes, in which submissions run side by side; it is looked at when all of a round are over.

Two of them take turns (`Rotation`): while one empties and is looked at, the other takes the next submissions. So every
look is at a quiet arena, in which whatever the baseline has not was left behind, and the load goes on all the while.
"""

import contextlib
import datetime
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from leakcheck.errors import NativeError, TargetError
from leakcheck.report import Leak
from leakcheck.targets import Box, Target
from leakcheck.trials.host import ArenaHost, Running
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import grouped, place_of, same

__all__ = ["MARK", "Rotation", "Run", "SharedArena", "SharedRemnant"]

MARK = "LEAKCHECK_SUBMISSION"
"""In the environment of each launch: which submission it is."""

# The kernel counts a process' start in hundredths of a second.
_TICK = 0.02
# With fewer looks one cannot tell that something does not grow.
_LOOKS = 3
_MOST_PARENTS = 100
_RESPAWNING = "respawning"
_MOST_RECOVERED = 200


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
    round whose look no longer showed it; None while it is there. `bounded`: of the like there is no more at the end
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
        """Whether it is a leak: it is there, and there was ever more of the like."""
        return not self.late and (self.damaged or (self.gone is None and not self.bounded))


class _SharedHost(ArenaHost):
    """An arena of several supervisors: each has its own processes."""

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(supervisor.pid)
            return {top, *top.children(recursive=True)}
        return set()


class SharedArena:
    """One such arena; entered, it is up. `late` is told of a command that is to be killed for running too long.

    `needed` are paths of the host that must be visible in it.
    """

    def __init__(
        self,
        target: Target,
        boxes: int,
        *,
        settle: float,
        needed: Sequence[Path],
        late: Callable[["SharedArena", Running], None],
    ) -> None:
        self.host = _SharedHost(target, settle, needed)
        self._target, self._boxes, self._late = target, boxes, late
        self.left: dict[str, SharedRemnant] = {}
        self.shown: list[set[str]] = []
        """The keys of what of `left` each look showed."""
        self._kernel_sessions: dict[int, int] = {}
        """Submission by the session that a command of it began; each is one, by its process id inside."""
        self.untied: dict[str, Leak] = {}
        self.gaps: dict[str, str] = {}
        self.settled_ms: dict[int, float] = {}
        """Until what was going away after a round was gone; of the rounds after which something was."""
        self.looks_ms: list[float] = []

    def __enter__(self) -> Self:
        self.host.__enter__()
        work = self.host.work
        self.sessions = [
            Session(
                self._target,
                self.host,
                number,
                work=work.parent / f"box-{number}",
                late=lambda process: self._late(self, process),
            )
            for number in range(self._boxes)
        ]
        for session in self.sessions:
            self.host.make_directory(session.box.work)
        return self

    def __exit__(self, *_: object) -> None:
        self.host.__exit__(None, None, None)
        # They know us: let go of now, and not when the collector comes by, descriptors are closed at once.
        self.sessions = []

    def pids(self) -> set[int]:
        """Return all that runs in it, as the host numbers them."""
        return self.host.pids()

    def started(self, process: Running, run: Run) -> None:
        """Note that `process`, which leads a session, is of `run`."""
        # Gone already, it may have been reaped: then what it left is known by other things.
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            self._kernel_sessions[int(status.partition("\nNSpid:")[2].split("\n", 1)[0].split()[-1])] = run.number

    def look(self, number: int, runs: Sequence[Run]) -> None:
        """Look at it after round `number`, in which there were `runs`; nothing may run in it.

        What is there for the first time is of these runs. What was there and is no longer went by itself, or a later
        run took it away.
        """
        began = time.monotonic()
        report = self.host.look()
        self.gaps.update({kind: gap.reason for kind, gap in report.gaps.items()})
        self.untied.update({leak.key: leak for leak in report.unattributed})
        if report.transient:
            self.settled_ms[number] = max(gone.gone_after_ms for gone in report.transient)
        now = {leak.key for leak in report.leaks}
        for key, one in self.left.items():
            if key not in now and one.gone is None:
                one.gone = number
        for leak in report.leaks:
            if leak.class_ == _RESPAWNING and leak.key in self.left:
                self.left[leak.key].runs.extend(run.number for run in runs)
        new = [leak for leak in report.leaks if leak.key not in self.left]
        replaced = self.host.replaced(new)
        for leak in new:
            if leak.key not in replaced:
                self.left[leak.key] = self._tied(leak, number, runs)
        self.shown.append(now & self.left.keys())
        self.looks_ms.append((time.monotonic() - began) * 1000)

    def mark_bounded(self) -> None:
        """Mark as `bounded` what is left of which there was no more at the end than after the first round."""
        if len(self.shown) < _LOOKS:
            return
        for alike in grouped(list(self.left.items()), lambda one, other: same(one[1].leak, other[1].leak)):
            keys = {key for key, _ in alike}
            if len(keys & self.shown[-1]) <= len(keys & self.shown[0]):
                for _, one in alike:
                    # What lives on in ever new processes is told as one, however many there are of it.
                    one.bounded = one.gone is None and one.leak.class_ not in ("damaged", _RESPAWNING)

    def recover_rest(self) -> Iterator[str]:
        """Recover the boxes that what is left can be of, where each run had one of its own; yield what goes wrong."""
        rest = {pair for one in self.left.values() if one.gone is None for pair in one.names}
        for box, name in sorted(rest)[:_MOST_RECOVERED]:
            session = self.sessions[box]
            if name != session.box.name:
                last, session.box = session.box, msgspec.structs.replace(session.box, name=name)
                if wrong := session.recover():
                    yield f"box {name}: {wrong}"
                session.box = last

    def _tied(self, leak: Leak, number: int, runs: Sequence[Run]) -> SharedRemnant:
        # What lives on in ever new processes is told as one, whichever submission's it was that was seen.
        if leak.class_ != _RESPAWNING and (marked := self._marked(leak)) is not None:
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
                leak, number, numbers if tied.startswith("box") else [*numbers, *self._survivors(number)], tied
            )
        left.late = bool(found) and all(run.late for run in found) and len(left.runs) == len(found)
        left.names = [(run.box, run.name) for run in found if run.name]
        return left

    def _of_box(self, leak: Leak, runs: Sequence[Run]) -> tuple[list[Run], str]:
        """Return those of `runs` whose box alone has such a place; all of them where it tells of no box."""
        path = place_of(leak)
        for session in self.sessions:
            mine = [run for run in runs if run.box == session.box.number]
            named = [run for run in mine if self._target.names_box(path, _box_of(session, run))]
            if named:
                return named, "box"
            work = str(session.box.work)
            if mine and (path == work or path.startswith(f"{work}/") or self._target.owns(path, session.box)):
                return mine, "box"
        return list(runs), "round"

    def _survivors(self, number: int) -> list[int]:
        """Return the submissions of earlier rounds of which something still runs: it may have left more."""
        alive = [one for one in self.left.values() if one.leak.kind == "process" and one.gone is None]
        return sorted({run for one in alive if one.round < number for run in one.runs})

    def _marked(self, leak: Leak) -> int | None:
        """Return the submission by whose mark a process is known that it is, descends from, or is held by."""
        resource = leak.evidence.get("resource", {})
        pids = [value for value in (resource.get("pid"), resource.get("ppid")) if isinstance(value, int)]
        pids += [pid for one in _records(leak.evidence) if isinstance(pid := one.get("pid"), int)]
        for pid in dict.fromkeys(pids):
            for one in self._line(pid):
                if (marked := self._mark_of(one)) is not None:
                    return marked
        return self._kernel_sessions.get(resource.get("session", 0))

    def _line(self, pid: int) -> Iterator[int]:
        """Yield `pid` and those that it descends from, process 1 apart."""
        for _ in range(_MOST_PARENTS):
            if pid <= 1:
                return
            yield pid
            try:
                status = self.host.read(Path(f"/proc/{pid}/status"))
            except OSError:
                return
            parent = re.search(rb"^PPid:\t(\d+)$", status, re.MULTILINE)
            pid = int(parent[1]) if parent else 0

    def _mark_of(self, pid: int) -> int | None:
        try:
            environ = self.host.read(Path(f"/proc/{pid}/environ"))
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


class Rotation:
    """Which of several arenas takes the next submission; with `looks` false they are never looked at.

    A round has `size` submissions, or more while no other arena is ready. Grounds are looked at in the background;
    `error` is why a look could not be made.
    """

    def __init__(self, arenas: Sequence[SharedArena], size: int, *, looks: bool = True) -> None:
        self.rounds = 0
        self.error = ""
        self._size, self._looks = size, looks
        self._ready = list(arenas)
        self._rounds: dict[int, _Round] = {}
        self._changed = threading.Condition()
        self._over = False
        self._open = self._opened(self._ready.pop(0))
        self._looker = threading.Thread(target=self._look, name="leakcheck-looker", daemon=True)
        self._looker.start()

    @contextlib.contextmanager
    def turn(self, number: int, box: int) -> Generator[tuple[SharedArena, Run], None, None]:
        """Give the arena in which submission `number` runs in `box`, with its `Run`."""
        with self._changed:
            if len(self._open.runs) >= self._size and self._ready and self._looks:
                self._open.closed = True
                self._open = self._opened(self._ready.pop(0))
                self._changed.notify_all()
            mine = self._open
            run = Run(number, box, mine.number, began=time.time())
            mine.runs.append(run)
            mine.active += 1
        try:
            yield mine.arena, run
        finally:
            with self._changed:
                mine.active -= 1
                self._changed.notify_all()

    def end(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Look at the last round too, when nothing runs any more, unless somebody has `given_up` meanwhile."""
        with self._changed:
            self._open.closed = True
            self._over = True
            self._changed.notify_all()
        while self._looker.is_alive() and not given_up():
            self._looker.join(0.2)

    def _opened(self, arena: SharedArena) -> "_Round":
        self.rounds += 1
        opened = self._rounds[self.rounds] = _Round(arena, self.rounds)
        return opened

    def _look(self) -> None:
        while (quiet := self._quiet()) is not None:
            try:
                if self._looks:
                    quiet.arena.look(quiet.number, quiet.runs)
            except (TargetError, NativeError, OSError) as error:
                self.error = f"look after round {quiet.number}: {error}"
            with self._changed:
                del self._rounds[quiet.number]
                self._ready.append(quiet.arena)
                self._changed.notify_all()

    def _quiet(self) -> "_Round | None":
        """Wait for a closed round all of whose runs are over; None when there will be no more."""
        with self._changed:
            while True:
                for one in self._rounds.values():
                    if one.closed and one.active == 0:
                        return one
                if self._over and not self._rounds:
                    return None
                self._changed.wait()


class _Round:
    def __init__(self, arena: SharedArena, number: int) -> None:
        self.arena, self.number = arena, number
        self.runs: list[Run] = []
        self.active = 0
        self.closed = False
