"""Which payloads run, seen from outside: by their processes, whatever the target says.

Two runs overlap exactly if one of them runs when the other one starts. So each start of a payload's program waits at a
gate until all processes have been looked at: no overlap is too short to be seen.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path

from leakcheck.errors import reason
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.contender_program import PROGRAMS, contender, processes
from leakcheck.trials.gate import Gate, Start
from leakcheck.trials.payload import install
from leakcheck.trials.payload_process import Life, arguments, now, readable, runs_on
from leakcheck.trials.rootfs import opened

# Seconds between two looks, if nothing starts.
_STEP = 0.004


class Witness(threading.Thread):
    """Looks at the processes of an arena until `close`, and records which payloads run at the same time.

    `openers` have opened the first one's program before.
    """

    def __init__(self, host: ArenaHost, openers: Collection[int] = ()) -> None:
        super().__init__(name="leakcheck-witness", daemon=True)
        self._host = host
        self._changed = threading.Condition()
        self._expected: dict[bytes, tuple[int, bool]] = {}
        self._lives: dict[int, Life] = {}
        self._ended: set[int] = set()
        # By contender: who started its program at the gate, and who opened it without having done so.
        self._starters: dict[int, set[int]] = {}
        self._openers: dict[int, set[int]] = {0: {*openers}}
        # Each program, wherever it is and whatever its name.
        self._programs: dict[tuple[int, int], int] = {}
        self._closing = False
        self._gate: Gate | None = None
        self.all: list[Life] = []
        """Every process of a payload that was seen."""
        self.overlaps: dict[tuple[int, int], float] = {}
        """Pairs of contenders whose payloads ran at the same time, and when that was seen first."""
        self.failure: BaseException | None = None
        self.blind = ""
        """Why starts do not wait here; empty if they do."""
        self.strange: set[str] = set()
        """What was executed in the place of the programs, and is none of them."""

    def expect(self, number: int) -> None:
        """Look for the payload of contender `number`, too, whose program is made."""
        program = contender(number)
        install(self._host, program)
        if self._gate is not None:
            with opened(self._host.root, Path(program.program[0]), os.O_PATH) as file:
                self._gate.follow(file)
                found = os.fstat(file)
                self._programs[found.st_dev, found.st_ino] = number
        with self._changed:
            for argv, holds in processes(number).items():
                self._expected["\0".join([*argv, ""]).encode()] = number, holds

    def run(self) -> None:
        """Look at each start and in between."""
        try:
            with self._gate or contextlib.nullcontext():
                while not self._closing:
                    self._watch()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def start(self) -> None:
        """Begin; a program that starts from now on waits until it was looked for."""
        self._host.make_directory(PROGRAMS)
        self._host.scratch.append(PROGRAMS)
        try:
            with opened(self._host.root, PROGRAMS, os.O_PATH | os.O_DIRECTORY) as directory:
                self._gate = Gate(directory)
        except OSError as error:
            self.blind = f"starts of payloads cannot be held here: {reason(error)}"
        super().start()

    def _watch(self) -> None:
        starts = [] if self._gate is None else self._gate.starts(_STEP)
        if self._gate is None:
            time.sleep(_STEP)
        with self._changed:
            # Whoever starts is there already when the others are looked at, and executes nothing yet.
            for start in starts:
                self._meet_at_gate(start)
            self._look()
            if self._gate is not None:
                self._gate.admit(starts)
            self._changed.notify_all()

    def _meet_at_gate(self, start: Start) -> None:
        number = self._programs.get(start.inode, int(start.name) if start.name.isdecimal() else None)
        ours = start.pid == os.getpid()
        if start.waits and not ours and start.pidfd >= 0:
            if number is not None and start.pid > 1:
                self._let_in(number, start)
                return
            self.strange.add(start.name)
        elif not (start.waits or ours or number is None or start.pid in self._starters.get(number, ())):
            self._openers.setdefault(number, set()).add(start.pid)
        if start.pidfd >= 0:
            os.close(start.pidfd)

    def _let_in(self, number: int, start: Start) -> None:
        self._starters.setdefault(number, set()).add(start.pid)
        if (life := self._lives.pop(start.pid, None)) is not None:
            os.close(life.pidfd)
        self._add(Life(number, start.pid, start.pidfd, at := now(), at, holds=False))

    def _add(self, life: Life) -> None:
        self._lives[life.pid] = life
        self.all.append(life)

    def starts(self, number: int) -> int:
        """Return how many processes started the program of `number` at the gate."""
        with self._changed:
            return len(self._starters.get(number, ()))

    def copied(self, number: int) -> bool:
        """Return whether somebody opened the program of `number` who did not execute it: it may have run elsewhere."""
        with self._changed:
            return bool(self._openers.get(number))

    def released(self, number: int) -> bool:
        """Return whether the payload of `number` was seen to wait, and this wait was ended by us."""
        with self._changed:
            return any(life.number == number and life.killed for life in self.all)

    def close(self) -> None:
        """Stop looking, and close all descriptors."""
        self._closing = True
        if self.ident is not None:
            self.join()
        for life in self._lives.values():
            os.close(life.pidfd)
        self._lives.clear()

    def saw(self, number: int) -> bool:
        """Return whether the payload of `number` was ever seen."""
        with self._changed:
            self._check()
            return any(life.number == number for life in self.all)

    def holding(self) -> list[int]:
        """Return whose payloads wait for their end, the first that began first."""
        with self._changed:
            self._check()
            return [life.number for life in self._lives.values() if life.holds and not life.over]

    def alive(self, number: int) -> bool:
        """Return whether the payload of `number` was alive at the last look."""
        with self._changed:
            self._check()
            return any(life.number == number and not life.over for life in self._lives.values())

    def end(self, number: int) -> None:
        """End the wait of the payload of `number`, now or once it begins: the rest of it follows by itself."""
        with self._changed:
            self._ended.add(number)
            self._end()

    def _end(self) -> None:
        for life in self._lives.values():
            if life.holds and life.number in self._ended:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(life.pidfd, signal.SIGKILL)
                life.holds, life.killed = False, True

    def window(self, number: int) -> tuple[float, float] | None:
        """Return when the payload of `number` was seen alive first and last; None if never."""
        with self._changed:
            lives = [life for life in self.all if life.number == number]
            return (min(one.first for one in lives), max(one.last for one in lives)) if lives else None

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _look(self) -> None:
        # A child of the shell becomes the one that waits.
        known = {pid for pid, life in self._lives.items() if life.holds or life.killed}
        for pid in self._host.pids() - known:
            self._meet(pid)
        self._end()
        # Whoever is not over at the end of this was alive at its begin: all of these at the same time.
        at = now()
        for life in [*self._lives.values()]:
            if readable(life.pidfd):
                self._part(life)
            else:
                life.last = at
        if len({life.number for life in self._lives.values()}) > 1:
            running = {life.number for life in self._lives.values() if runs_on(life)}
            for pair in itertools.combinations(sorted(running), 2):
                self.overlaps.setdefault(pair, at)

    def _part(self, life: Life) -> None:
        life.over = True
        os.close(life.pidfd)
        del self._lives[life.pid]

    def _meet(self, pid: int) -> None:
        if (found := self._expected.get(arguments(pid))) is None or pid <= 1:
            return
        if (life := self._lives.get(pid)) is not None:
            if not readable(life.pidfd):
                life.holds = found[1]
                return
            self._part(life)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        # The pid may have been another's a moment ago.
        if self._expected.get(arguments(pid)) != found or readable(pidfd):
            os.close(pidfd)
            return
        number, holds = found
        self._add(Life(number, pid, pidfd, at := now(), at, holds))
