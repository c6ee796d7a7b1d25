"""Several runs that contend for one box of a trial's arena, with a witness of whose payload runs."""

import contextlib
import copy
import os
import time
from collections.abc import Generator
from pathlib import Path

from injectors import Checked, Evidence
from injectors.timed import ended
from leakcheck.errors import UsageError
from leakcheck.targets.adapter import Locks
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.boot import show_this_boot, shows_another_boot, warm_up_after_boot
from leakcheck.trials.bystanders import Bystanders
from leakcheck.trials.contender import Contender, pid_inside
from leakcheck.trials.crowd import HELD, QUEUED, Crowd
from leakcheck.trials.history import Attempt, History
from leakcheck.trials.lock_state import locks_on_disk
from leakcheck.trials.rootfs import find, opened
from leakcheck.trials.session import Session

# Seconds between two tries to get the box of a dead holder.
_PAUSE = 0.1
# Seconds for which a holder is stopped at most: its payload ends by its limit.
_LONG = 12


class Contest:
    """The contest of one trial. The `session` is the holder's, whose box was prepared: `argv` launches it."""

    def __init__(self, session: Session, host: ArenaHost, argv: list[str], locks: Locks) -> None:
        self._session, self._host, self._argv, self._locks = session, host, argv, locks
        self._crowd = Crowd(session, host, locks)
        self._witness = self._crowd.witness
        self._killed: float | None = None
        self._recovered = self._tolerates = False
        self._refusals: list[str] = []
        self._bystanders = Bystanders(host)
        self._pid = 0
        self._kept: dict[Path, bytes] = {}
        self._booted = False

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its begin."""
        return self._since(time.monotonic())

    def _since(self, when: float) -> float:
        return (when - self._crowd.began) * 1000

    @property
    def _holder(self) -> Contender:
        return self._crowd.all[0]

    def hold(self, *, until_seen: bool = True) -> bool:
        """Start the holder; return whether its payload runs."""
        self.come(1)
        process = self._holder.process
        self._pid = 0 if process is None else pid_inside(process.pid)
        if until_seen:
            # At the gate it executes nothing yet.
            self._crowd.until(lambda: 0 in self._witness.holding() or self._holder.over.is_set())
        return self._witness.alive(0)

    def come(self, count: int, *, waiting: bool = False) -> None:
        """Start so many contenders at once."""
        self._crowd.add(count, self._argv, waits=waiting, tolerated=self._tolerates)

    def wait_for_others(self, first: int = 1) -> bool:
        """Wait until all from the `first` have ended, got the box or had time to wait; return whether one has it."""
        others = self._crowd.all[first:]

        def settled() -> bool:
            holding = self._witness.holding()
            return all(one.over.is_set() or one.number in holding for one in others)

        self._crowd.until(settled, QUEUED if any(one.waits for one in others) else HELD)
        return bool(self._witness.holding())

    def wait(self, *, holder: bool = False) -> None:
        """Let everybody run to the end; with `holder`, only once the holder has ended. Payloads end one by one."""
        if holder:
            self._crowd.until(self._holder.over.is_set)
            return
        self._crowd.drain()
        if self._killed is not None:
            self._free()

    def _free(self) -> None:
        """Let one after the other come until one is admitted, if need be after a recovery."""
        until = time.monotonic() + self._locks.within
        while not self._came_in() and time.monotonic() < until:
            if not self._recovered:
                self._recovered = True
                if wrong := self._session.recover():
                    self._refusals.append(f"after the kill: {wrong}")
            else:
                time.sleep(_PAUSE)
            self.come(1)
            self._crowd.drain()

    def _came_in(self) -> list[Attempt]:
        """Return those whose payload ran after the holder was killed."""
        killed = self._since(self._killed or 0)
        return [one for one in self._crowd.attempts() if not one.faulted and one.ended > killed and one.admitted]

    def wait_for_fault(self) -> bool:
        """Wait until the tracer has killed the holder or that has ended; return whether it was killed."""
        holder = self._holder

        def over() -> bool:
            if 0 in self._witness.holding():
                self._witness.end(0)
            return bool(self._session.fired()) or holder.over.is_set()

        self._crowd.until(over)
        return bool(self._session.fired())

    def release(self) -> None:
        """End the holder's payload, as by itself."""
        self._witness.end(0)

    def signal(self, number: int) -> bool:
        """Send the holder's supervisor a signal; return false if it has ended."""
        process = self._holder.process
        if process is None or process.pidfd < 0 or ended(process, 0):
            return False
        process.send_signal(number)
        return True

    def killed(self) -> None:
        """Note that the holder is killed."""
        self._holder.faulted = True
        self._killed = time.monotonic()

    def tolerate(self) -> None:
        """Note that the lock is damaged from now on."""
        self._tolerates = True

    def recover(self) -> None:
        """Run the target's recovery while the holder has the box, whose own commands may end meanwhile."""
        if self._locks.forces:
            self.killed()
        beside = copy.copy(self._session)
        if (wrong := beside.recover()) and not self._crowd.is_busy(wrong, beside.commands[-1].exit or 0):
            self._refusals.append(f"while the box was in use: {wrong}")
        self._session.late |= beside.late

    def recover_once(self) -> bool:
        """Run the target's recovery, which the tracer is to kill; return whether it did."""
        self._session.recover(again=False)
        return bool(self._session.fired("recover"))

    def take_pid(self) -> bool:
        """Start a process that has the pid of the holder, which has ended; return whether it got it."""
        return self._bystanders.take(self._pid)

    def outlast(self) -> None:
        """Wait as long as the box of a dead holder may take to be free again, as far as the payloads last."""
        self._crowd.until(self._holder.over.is_set, min(self._locks.within, _LONG))

    def keep_locks(self) -> None:
        """Note what a disk has of the lock files, for the next boot."""
        self._kept = locks_on_disk(self._session, self._locks)

    def boot(self) -> bool:
        """Recover, and show another boot id, with the lock files that were kept; return whether that could be."""
        box = self._session.box
        wrong = self._session.recover() or warm_up_after_boot(self._session)
        # It is this box that was locked.
        self._session.box = box
        self._booted = True
        for path, content in self._kept.items():
            self._host.write(path, content)
        return bool(self._kept) and not wrong and shows_another_boot(self._session)

    def lock_files(self, declared: str) -> list[str]:
        """Return the paths that exist of what the adapter's ``locks.files`` calls `declared`."""
        return [str(path) for path in find(self._host.root, self._session.target.filled(declared, self._session.box))]

    def elsewhere(self, content: bytes) -> str:
        """Return the path of a file with this content that is not the target's."""
        path = self._session.box.work.parent / "elsewhere" / "lock"
        self._host.scratch.append(path.parent)
        self._host.write(path, content)
        return str(path)

    def directory(self, path: str) -> contextlib.AbstractContextManager[int]:
        """Yield a descriptor of the directory that commands see at `path`."""
        return opened(self._host.root, Path(path), os.O_PATH | os.O_DIRECTORY)

    def history(self) -> History:
        """Return what happened."""
        offset = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        first = min((one.window[0] - offset for one in self._came_in() if one.window), default=None)
        return History(
            attempts=self._crowd.attempts(),
            overlaps=sorted(self._witness.overlaps),
            killed=None if self._killed is None else self._since(self._killed),
            free=None if first is None else self._since(first),
            recovered=self._recovered,
            within=self._locks.within * 1000,
            refusals=self._refusals,
            blind=self._witness.blind,
            strange=sorted(self._witness.strange),
        )

    @contextlib.contextmanager
    def open(self) -> Generator[None, None, None]:
        """Witness until the end, and let nothing of ours stay."""
        self._witness.start()
        try:
            yield
        finally:
            for one in self._crowd.all:
                self._witness.end(one.number)
            self._bystanders.end()
            self._witness.close()
            if self._booted:
                show_this_boot(self._session)

    def close(self) -> None:
        """Remove what is left of the contenders."""
        self._crowd.close()


def run_contest(session: Session, injector: Checked, argv: list[str]) -> tuple[Evidence, History]:
    """Let runs contend for the box of `session` under a plan; return whether it happened, and all that did.

    It raises `LateError` if one of them did not end.
    """
    host, locks = session.host, session.target.adapter.locks
    if not isinstance(host, ArenaHost) or locks is None:
        raise UsageError(f"plan {injector.plan}: {session.target.name} declares no locks, or this is no arena")
    contest = Contest(session, host, argv, locks)
    try:
        with contest.open():
            evidence = injector.contend(contest)
            return evidence, contest.history()
    finally:
        session.waits = False
        contest.close()
