"""Another box beside the one whose state is damaged: used before that, in use meanwhile, and used again after it."""

import contextlib
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from injectors import Checked, injector_for
from leakcheck.errors import LateError, TargetError, UsageError
from leakcheck.targets import Box, Target
from leakcheck.trials import open_host
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.case import Case
from leakcheck.trials.contender import Contender
from leakcheck.trials.opponents import Opponent, own_directory
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.trial import Trial
from leakcheck.trials.turns import Turn
from leakcheck.trials.witness import Witness

if TYPE_CHECKING:
    from leakcheck.trials.outcome import Outcome

__all__ = ["Neighbour", "has_boxes", "run_trial_beside"]

# The number of its payload, and seconds for that to begin and to end.
_NUMBER = 1
_PATIENCE = 60
_STEP = 0.003


def has_boxes(target: Target, work: Path) -> bool:
    """Return whether two boxes, each of an own user, differ in anything: else, one would be the other one."""
    some = [Box(number=number, work=work / str(number), run=str(number)) for number in (0, 1)]
    return len({str([target.env(box), target.launch(NEXT, box), target.recover_commands(box)]) for box in some}) > 1


class Neighbour:
    """The box after that of `main`, of another user, who shares what the locks of the adapter say."""

    def __init__(self, main: Session, host: ArenaHost) -> None:
        locks = main.target.adapter.locks
        work = own_directory(main, host, "neighbour")
        self._session = Opponent(main, host, work, locks.shared if locks else (), number=main.box.number + 1)
        self._witness = Witness(host)
        self._run: Contender | None = None

    @contextlib.contextmanager
    def open(self) -> Generator[None, None, None]:
        """Witness until the end, and let its run end."""
        try:
            yield
        finally:
            self._witness.end(_NUMBER)
            if self._run is not None:
                self._run.thread.join(_PATIENCE)
                if self._run.over.is_set():
                    os.close(self._run.output)
            self._witness.close()

    def begin(self) -> str:
        """Use its box once, and start a run in it that lasts; return what is wrong with that."""
        if wrong := self._session.again():
            return wrong
        self._session.renew()
        self._witness.start()
        self._witness.expect(_NUMBER)
        self._run = run = Contender(_NUMBER, self._session, None, waits=False)
        run.thread.start()
        self._wait(lambda: _NUMBER in self._witness.holding() or run.over.is_set())
        return "" if self._witness.alive(_NUMBER) else f"its payload was not seen to run: {run.words}"

    def end(self) -> str:
        """Let its run end, and use its box again; return what is wrong: it has to know of nothing."""
        run = self._run
        if run is None:
            return ""
        if not self._witness.alive(_NUMBER):
            run.thread.join(_PATIENCE)
            return f"its run was ended: status {run.status or 'none'}: {run.words}"
        self._witness.end(_NUMBER)
        self._wait(run.over.is_set)
        if run.late is not None:
            return str(run.late)
        if run.failure is not None:
            raise run.failure
        if run.status != "OK":
            return f"status {run.status or 'none'}, not OK, of its run: {run.words}"
        if f"end {_NUMBER} " not in run.said:
            return f"its run was not seen to reach its end: {run.words}"
        self._session.renew()
        return self._session.again()

    def _wait(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE
        while not done() and time.monotonic() < until:
            time.sleep(_STEP)


def run_trial_beside(target: Target, case: Case, number: int, *, settle: float, turn: Turn | None = None) -> Trial:
    """Damage a state file while another box is in use, recover, and see whether that one has noticed anything.

    What else is wrong after such a damage is found without another box.
    """
    began = time.monotonic()
    injector = injector_for(case.plan)
    with open_host(target, settle, live=False, options={"turn": turn}) as host:
        if not isinstance(host, ArenaHost):
            raise UsageError(f"plan {case.plan}: state files are damaged in arenas only")
        session = Session(target, host, number)
        session.timing_ms["up"] = (time.monotonic() - began) * 1000
        neighbour = Neighbour(session, host)
        with neighbour.open():
            with session.timed("warm-up"):
                wrong = session.again() or neighbour.begin()
            if wrong:
                trial = Trial(case=case, outcomes=frozenset({"false-status"}), detail=f"warm-up run: {wrong}")
            else:
                session.renew()
                fired, detail = _damage(session, case, injector, neighbour)
                outcomes: set[Outcome] = {"wedged"} if detail else set()
                outcomes |= set() if fired else {"not-reached"}
                trial = Trial(case=case, outcomes=frozenset(outcomes), fired=fired, detail=detail)
        if turn is not None:
            turn.lend()
        down = time.monotonic()
    session.timing_ms["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, timing_ms=session.timing_ms)


def _damage(session: Session, case: Case, injector: Checked, neighbour: Neighbour) -> tuple[bool, str]:
    """Damage the state of a killed run, and recover; return whether that happened, and what the other box has of it."""
    fired = False
    with session.traced(injector):
        try:
            with session.timed("run"):
                evidence, _ = session.run_under(injector, session.prepare(case.submission), case.submission)
            fired = evidence.fired
        except LateError:
            # The kill did not end it: the trial without another box finds that.
            return False, ""
    with session.timed("recover"):
        session.recover()
    with session.timed("other box"):
        try:
            wrong = neighbour.end()
        except TargetError as error:
            wrong = str(error)
    return fired, f"another box, which was in use: {wrong}" if wrong else ""
