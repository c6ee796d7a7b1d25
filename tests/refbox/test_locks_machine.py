"""A box of refbox is a mutex whose owner may crash, whatever is launched, killed, stopped, recovered and damaged."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from injectors.damages import PLACES
from injectors.locks import LINKS, damage_lock
from leakcheck.targets import load
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.contender import Contender
from leakcheck.trials.contest import Contest
from leakcheck.trials.session import Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

LOCK = "/run/refbox/box-{box}.lock"
# Until something happens, however busy the machine is.
PATIENCE = 60.0


class Mutex(RuleBasedStateMachine):
    """The model: who owns the box, who waits for it, and whether the owner is stopped."""

    def __init__(self) -> None:
        super().__init__()
        target = load("refbox")
        assert target.adapter.locks is not None
        self.host = ArenaHost(target, 0).__enter__()
        self.session = Session(target, self.host)
        assert self.session.again() == ""
        self.contest = Contest(self.session, self.host, [], target.adapter.locks)
        self.crowd = self.contest._crowd
        self.witness = self.crowd.witness
        self.witness.start()
        self.owner: Contender | None = None
        self.queue: list[Contender] = []
        self.stopped = False

    def launch(self, count: int, *, waits: bool) -> list[Contender]:
        before = len(self.crowd.all)
        self.crowd.add(count, [], waits=waits, tolerated=False)
        return self.crowd.all[before:]

    def until(self, done: Callable[[], Any], what: str) -> None:
        assert self.crowd.until(lambda: bool(done()), PATIENCE), f"not in {PATIENCE:.0f} s: {what}"

    def admitted(self, some: list[Contender]) -> Contender:
        """Wait until one of them has the box, and return it."""
        self.until(lambda: any(self.witness.alive(one.number) for one in some), "somebody gets the box")
        return next(one for one in some if self.witness.alive(one.number))

    def pass_on(self) -> None:
        """The box is free: one of those who wait gets it."""
        self.owner, self.stopped = None, False
        if self.queue:
            self.owner = self.admitted(self.queue)
            self.queue.remove(self.owner)

    # What is done.

    @rule(count=st.integers(1, 3))
    def come(self, count: int) -> None:
        some = self.launch(count, waits=False)
        if self.owner is None:
            self.owner = self.admitted(some)
            some.remove(self.owner)
        self.until(lambda: all(one.over.is_set() for one in some), "all others are refused")
        for one in some:
            assert self.crowd.is_busy(one.words, one.code), (one.code, one.words)
            assert not self.witness.saw(one.number)

    @rule(count=st.integers(1, 2))
    def queue_up(self, count: int) -> None:
        if len(self.queue) < 4:
            self.queue += self.launch(count, waits=True)
            if self.owner is None:
                self.pass_on()

    @precondition(lambda self: self.owner is not None and not self.stopped)
    @rule()
    def end(self) -> None:
        assert self.owner is not None
        self.witness.end(self.owner.number)
        self.until(self.owner.over.is_set, "the owner ends")
        assert (self.owner.status, self.owner.code) == ("OK", 0), self.owner.words
        self.pass_on()

    @precondition(lambda self: self.owner is not None)
    @rule()
    def kill(self) -> None:
        assert self.owner is not None
        assert self.owner.process is not None
        self.owner.faulted = True
        self.owner.process.send_signal(signal.SIGKILL)
        self.until(self.owner.over.is_set, "the killed owner ends")
        self.pass_on()

    @precondition(lambda self: self.owner is not None)
    @rule(stop=st.booleans())
    def stop_or_continue(self, stop: bool) -> None:
        assert self.owner is not None
        assert self.owner.process is not None
        self.owner.process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)
        self.stopped = stop

    @rule()
    def recover(self) -> None:
        wrong = self.session.recover()
        if self.owner is None:
            assert wrong == ""
        else:
            assert self.crowd.is_busy(wrong, self.session.commands[-1].exit or 0), wrong

    @rule(damage=st.sampled_from([*PLACES, *LINKS, "empty", "garbage", "oversized", "truncate=9", "more=/pid"]))
    def damage(self, damage: str) -> None:
        # Those who wait have the old file open: they still wait for its lock, then find that it was replaced.
        for path in self.contest.lock_files(LOCK):
            damage_lock(self.contest, path, damage)

    # What always holds.

    @invariant()
    def nobody_runs_beside_another(self) -> None:
        wanted = [] if self.owner is None else [self.owner.number]
        # A look may be that of a moment ago.
        self.until(lambda: self.alive() == wanted, "only the owner's payload runs")
        assert self.witness.overlaps == {}

    def alive(self) -> list[int]:
        return [one.number for one in self.crowd.all if self.witness.alive(one.number)]

    def teardown(self) -> None:
        try:
            if self.owner is not None and self.owner.process is not None:
                self.owner.process.send_signal(signal.SIGCONT)
            for one in self.crowd.all:
                self.witness.end(one.number)
            self.until(lambda: all(one.over.is_set() for one in self.crowd.all), "all end")
            for one in self.crowd.all:
                assert one.faulted or one.status == "OK" or self.crowd.is_busy(one.words, one.code), one.words
            assert self.session.again() == ""
        finally:
            self.witness.close()
            self.crowd.close()
            self.host.__exit__()


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Mutex,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_box_is_a_mutex_whose_owner_may_crash() -> None:
    run(4, 8)


@pytest.mark.slow  # some minutes
def test_a_box_is_a_mutex_whose_owner_may_crash_in_long_histories() -> None:
    run(60, 25)
