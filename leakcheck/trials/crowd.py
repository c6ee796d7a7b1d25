"""All who contend for one box in one trial: started at once, waited for, and let out of the box one by one."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from leakcheck.errors import NotApplicableError, TargetError
from leakcheck.targets.adapter import Locks
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.contender import ArenaFullError, Contender
from leakcheck.trials.history import Attempt
from leakcheck.trials.opponents import opponent, tidy
from leakcheck.trials.payload import printed
from leakcheck.trials.session import Session
from leakcheck.trials.witness import Witness

HELD, QUEUED = 5, 0.15
"""Seconds for which a box is kept from those who are refused, and from those who wait."""
# Seconds between two looks.
_STEP = 0.003
# What a contender needs at least: processes, its payload's among them, and MiB of memory.
_PROCESSES, _MIB = 6, 8


class Crowd:
    """The contenders for the box of `session`, with the `witness` of their payloads; the first one is the holder."""

    def __init__(self, session: Session, host: ArenaHost, locks: Locks) -> None:
        self._session, self._host, self._locks = session, host, locks
        self.began = time.monotonic()
        self.all: list[Contender] = []
        self.witness = Witness(host, session.openers)

    def add(self, count: int, argv: list[str], *, waits: bool, tolerated: bool) -> None:
        """Start `count` more at once; `argv` launches the first one of all, whose box is prepared, unless it waits."""
        _check_room(self._host, count)
        some = [self._new(argv, waits=waits, tolerated=tolerated) for _ in range(count)]
        for one in some:
            one.launched = time.monotonic()
            one.thread.start()
        for one in some:
            self.until(one.started.is_set)

    def _new(self, argv: list[str], *, waits: bool, tolerated: bool) -> Contender:
        number = len(self.all)
        session = opponent(self._session, self._host, number, self._locks) if number else self._session
        session.waits = waits
        self.witness.expect(number)
        queues = waits or not (self._locks.busy or self._locks.words)
        one = Contender(number, session, None if number or waits else argv, waits=queues)
        one.tolerated = tolerated
        self.all.append(one)
        return one

    def until(self, done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `done`, at most so many seconds; return whether it is. It raises what befell a contender."""
        until = None if seconds is None else time.monotonic() + seconds
        while not done():
            self._check()
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(_STEP)
        self._check()
        return True

    def _check(self) -> None:
        name = self._session.target.name
        for one in self.all:
            if one.late is not None:
                raise one.late
            if isinstance(one.failure, ArenaFullError):
                if not any(other.process for other in self.all):
                    raise TargetError(str(one.failure))
                hint = "give fewer --contenders"
                raise TargetError(f"{name}: the arena cannot hold {len(self.all)} contenders: {one.failure}; {hint}")
            if one.failure is not None:
                raise one.failure
            if self._is_invisible(one):
                raise NotApplicableError(
                    f"not applicable: the payload of {name} has no process that can be seen outside, "
                    "so nobody can say which payloads run"
                )

    def _is_invisible(self, one: Contender) -> bool:
        """Return whether its payload has run for some time, as it says itself, and was not seen."""
        now = time.monotonic()
        if now < one.launched + HELD or one.over.is_set() or self.witness.saw(one.number):
            return False
        if one.begun is None and f"begin {one.number} " in printed(one.session, one.output):
            one.begun = now
        return one.begun is not None and now > one.begun + HELD

    def drain(self) -> None:
        """Keep the box from all that want it as long as it takes them to be refused, then end one payload at a time."""
        holds = time.monotonic() + (QUEUED if any(one.waits for one in self.all) else HELD)

        def over() -> bool:
            holding = self.witness.holding()
            rest = [one for one in self.all if not one.over.is_set() and one.number not in holding]
            if holding and (not rest or time.monotonic() > holds):
                self.witness.end(holding[0])
            return all(one.over.is_set() for one in self.all)

        self.until(over)

    def attempts(self) -> Sequence[Attempt]:
        """Return what each came to."""
        return [one.attempt(self.witness, self.began, self.is_busy) for one in self.all]

    def is_busy(self, words: str, code: int) -> bool:
        """Return whether a command that ended so says that the box is in use."""
        return code in self._locks.busy or any(word in words for word in self._locks.words)

    def close(self) -> None:
        """Remove what their own directories had, and close what they printed into."""
        for one in self.all:
            if one.number:
                tidy(self._host, one.session)
            if one.over.is_set():
                os.close(one.output)


def _check_room(host: ArenaHost, count: int) -> None:
    """Raise `TargetError` if so many more contenders have no room: their failure to start would look like a refusal."""
    for top in host.cgroups.values():
        for path in (Path(top), *Path(top).parents):
            try:
                most = (path / "pids.max").read_text().strip()
                there = int((path / "pids.current").read_text())
            except OSError:
                break
            if most != "max" and there + count * _PROCESSES > int(most):
                raise _no_room(count, f"{path} allows {most} processes, and has {there}")
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found and (free := int(found[1]) >> 10) < count * _MIB:
        raise _no_room(count, f"{free} MiB of memory are free")


def _no_room(count: int, why: str) -> TargetError:
    return TargetError(f"the arena cannot hold {count} more contenders: {why}; give fewer --contenders")
