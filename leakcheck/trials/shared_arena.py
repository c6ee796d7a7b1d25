"""An arena with many boxes, in which submissions run side by side; it is observed when all of a round are over.

Two of them take turns (`Rotation`): while one empties and is observed, the other takes the next submissions. So every
look is at a quiet arena, in which whatever the baseline has not was left behind, and the load goes on all the while.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import psutil

from leakcheck.targets import Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.attribution import RESPAWNING, Attribution, Run, SharedRemnant
from leakcheck.trials.host import Running
from leakcheck.trials.live_host import descendants
from leakcheck.trials.session import Session
from leakcheck.trials.similarity import grouped, same

if TYPE_CHECKING:
    from leakcheck.report import Leak

__all__ = ["SharedArena"]

# Fewer looks do not show that something does not grow.
_LOOKS = 3
_MOST_RECOVERED = 200


class _SharedHost(ArenaHost):
    """An arena of several supervisors: each has its own processes."""

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and its descendants."""
        return descendants(supervisor)


class SharedArena:
    """One such arena; entered, it is up. `late` is called with a command before it is killed for running too long.

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
        self.attribution = Attribution(self._target, self.host, self.sessions)
        return self

    def __exit__(self, *_: object) -> None:
        self.host.__exit__()
        # They know us: let go of now, and not when the collector comes by, descriptors are closed at once.
        self.sessions = []
        del self.attribution

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
            if leak.class_ == RESPAWNING and leak.key in self.left:
                self.left[leak.key].runs.extend(run.number for run in runs)
        for leak in report.leaks:
            if leak.key not in self.left and not leak.replaces:
                self.left[leak.key] = self.attribution.tied(leak, number, runs, list(self.left.values()))
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
                    # What lives on in ever new processes is reported as one, however many there are of it.
                    one.bounded = one.gone is None and one.leak.class_ not in ("damaged", RESPAWNING)

    def recover(self) -> Iterator[str]:
        """Recover every box, also by earlier names that what is left can be of; yield what goes wrong, or nothing."""
        for session in self.sessions:
            session.started = None
            wrong = session.recover()
            yield wrong and f"box {session.box.number}: {wrong}"
        rest = {pair for one in self.left.values() if one.gone is None for pair in one.names}
        for box, name in sorted(rest)[:_MOST_RECOVERED]:
            session = self.sessions[box]
            if name != session.box.name:
                last, session.box = session.box, msgspec.structs.replace(session.box, name=name)
                wrong = session.recover()
                yield wrong and f"box {name}: {wrong}"
                session.box = last
