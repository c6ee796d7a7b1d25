"""An arena with many boxes, in which submissions run in parallel; it is observed when all runs of a round are over.

Two of them alternate (`Rotation`): while one drains and is observed, the other takes the next submissions. So every
observation is of a quiet arena, where everything that is not in the baseline is residue, and the load never stops.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import msgspec
import psutil

from leakcheck.errors import LateError, TargetError
from leakcheck.report import Leak
from leakcheck.submissions import Spec, Submission, build, cache_directory
from leakcheck.targets import Reply, Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.attribution import MARK, RESPAWNING, Attribution, Run, SharedRemnant
from leakcheck.trials.host import Running
from leakcheck.trials.live_host import descendants
from leakcheck.trials.record import Record
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.similarity import grouped, same

# Fewer observations do not prove that something does not grow.
_OBSERVATIONS = 3
_MOST_RECOVERED = 200


class _SharedHost(ArenaHost):
    """An arena with several supervisors, each with its own processes."""

    def tree(self, supervisor: Running) -> set[psutil.Process]:
        """Return the supervisor and its descendants."""
        return descendants(supervisor)


class SharedArena:
    """One such arena, with the compile cache; entering brings it up.

    `late` is called with a command before it is killed for running too long.
    """

    def __init__(
        self, target: Target, boxes: int, *, settle: float, late: Callable[["SharedArena", Running], None]
    ) -> None:
        self.host = _SharedHost(target, settle, [cache_directory()])
        self._target, self._boxes, self._late = target, boxes, late
        self.left: dict[str, SharedRemnant] = {}
        self.observed: list[int] = []
        """The rounds after which it was observed."""
        self.shown: list[set[str]] = []
        """For each observation, the keys of the items of `left` that it showed."""
        self.untied = dict[str, Leak]()
        self.gaps: dict[str, str] = {}
        self.settled_ms: dict[int, float] = {}
        """Milliseconds until transient residue of a round was gone, for rounds that had some."""
        self.observation_ms: list[float] = []

    def __enter__(self) -> Self:
        self.host.__enter__()
        late = functools.partial(self._late, self)
        works = [self.host.work.parent / f"box-{number}" for number in range(self._boxes)]
        for work in works:
            self.host.make_directory(work)
        self.sessions = [
            Session(self._target, self.host, number, work=work, late=late) for number, work in enumerate(works)
        ]
        self.attribution = Attribution(self._target, self.host, self.sessions)
        return self

    def __exit__(self, *_: object) -> None:
        self.host.__exit__()
        # They refer to us: dropping them now, not at the next garbage collection, closes the descriptors at once.
        self.sessions = []
        del self.attribution

    def run(self, submission: Submission, run: Run, waited: float) -> Record:
        """Run `submission` in its box, after it `waited` so many seconds; return its record."""
        session = self.sessions[run.box]
        session.env = {MARK: str(run.number)}
        session.started = lambda process: self.attribution.started(process, run)
        session.renew()
        run.name = session.box.name
        began = time.monotonic()
        done, detail = None, ""
        try:
            done = session.submit(session.prepare(submission), submission)
        except TargetError as error:
            detail = str(error)
            run.late = isinstance(error, LateError)
        else:
            wrong = _wrong(submission, done.reply)
            detail = f"{wrong}: {done.words}" if wrong else ""
        ended = time.monotonic()
        return Record(
            id=run.number,
            spec=submission.name,
            expect=submission.expect,
            status=done.reply.status if done else "none",
            right=not detail,
            exit_code=done.reply.exit_code if done else None,
            signal=done.reply.signal if done else None,
            wall_ms=round((ended - began) * 1000, 3),
            cpu_ms=None if done is None or done.cpu is None else round(done.cpu * 1000, 3),
            queued_ms=round(waited * 1000, 3),
            ended_s=ended,
            box=run.box,
            round=run.round,
            detail=detail,
            late=run.late,
        )

    def observe(self, number: int, runs: Sequence[Run]) -> None:
        """Observe it after round `number`, which had `runs`; nothing may run in it.

        What appears for the first time belongs to these runs. What no longer exists went away by itself, or a later run
        removed it.
        """
        began = time.monotonic()
        report = self.host.observe()
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
        self.observed.append(number)
        self.observation_ms.append((time.monotonic() - began) * 1000)

    def judged(self) -> Iterator[SharedRemnant]:
        """Yield what is left, `bounded` if the last round shows no more of the same than the first."""
        shown = [*self.shown]
        for alike in grouped([*self.left.items()], lambda one, other: same(one[1].leak, other[1].leak)):
            keys = {key for key, _ in alike}
            steady = len(shown) >= _OBSERVATIONS and len(keys & shown[-1]) <= len(keys & shown[0])
            for _, one in alike:
                # A chain of short-lived processes is reported as one, whatever their number.
                bounded = steady and one.gone is None and one.leak.class_ not in ("damaged", RESPAWNING)
                yield msgspec.structs.replace(one, bounded=bounded)

    def recover(self) -> Iterator[str]:
        """Recover every box, also under earlier names that can own residue; yield each error, empty if none."""
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


def compiled(spec: Spec) -> Submission:
    """Return the submission with the whole compile cache visible, so that a box needs the same directory for all."""
    return msgspec.structs.replace(build(spec), bundle=str(cache_directory()))


def warm_up() -> Submission:
    """Return the first submission of each box: it needs the same directory as all others."""
    return msgspec.structs.replace(NEXT, bundle=str(cache_directory()))


def _wrong(submission: Submission, reply: Reply) -> str:
    """Return what is wrong with the reply, as far as the target reports it; empty if nothing."""
    if reply.status != submission.expect:
        return f"status {reply.status}, not {submission.expect}"
    for what, got, expect in (
        ("signal", reply.signal, submission.expect_signal),
        ("exit code", reply.exit_code, submission.expect_exit),
    ):
        if expect is not None and got is not None and got != expect:
            return f"{what} {got}, not {expect}"
    return ""
