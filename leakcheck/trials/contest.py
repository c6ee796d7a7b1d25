"""Several runs that contend for one box of a trial's arena, with a witness of whose payload runs."""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from injectors import Checked, Evidence
from injectors.timed import ended, kill
from leakcheck.errors import LateError, NotApplicableError, TargetError, UsageError
from leakcheck.targets.adapter import Locks
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.history import Attempt, History
from leakcheck.trials.live_host import descendants
from leakcheck.trials.output import last_words, text
from leakcheck.trials.payload import printed
from leakcheck.trials.rootfs import find, make_directory, opened
from leakcheck.trials.session import Session
from leakcheck.trials.witness import Witness, contender

if TYPE_CHECKING:
    from leakcheck.trials.host import Running

# Seconds: between two looks of ours; for which a box is kept from those who are refused, and from those who wait.
_STEP = 0.003
_HELD = 5
_QUEUED = 0.15


class Contender:
    """One run, in a thread of its own. What it says of its end is there once it is `over`."""

    def __init__(self, number: int, session: Session, argv: list[str] | None, *, waits: bool) -> None:
        self.number, self.session, self.waits = number, session, waits
        self.submission = contender(number)
        self.process: Running | None = None
        self.output = os.memfd_create("leakcheck-contender")
        self.started, self.over = threading.Event(), threading.Event()
        self.faulted = self.tolerated = False
        self.status, self.words, self.code = "", "", -1
        self.launched = time.monotonic()
        self.ended = 0.0
        self.late: LateError | None = None
        self.failure: BaseException | None = None
        self._argv = argv
        self.thread = threading.Thread(target=self._run, name=f"leakcheck-contender-{number}", daemon=True)

    def _run(self) -> None:
        try:
            self._submit()
        except LateError as error:
            self.late = error
        except TargetError as error:
            self.words = str(error)
            if self.session.commands:
                self.code = self.session.commands[-1].exit or self.code
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the contest
            self.failure = error
        finally:
            self.ended = time.monotonic()
            self.started.set()
            self.over.set()

    def _submit(self) -> None:
        session = self.session
        argv = self._argv or session.prepare(self.submission)
        try:
            process = session.start(argv, self.output, stage="launch", payload=self.submission.program)
        except TargetError as error:
            raise ArenaFullError(str(error)) from error
        self.process = process
        self.started.set()
        self.code = session.wait(process, self.submission.wall, argv[0])
        self.words = last_words(self.output)
        self.status = session.target.status(self.code, session.box, session.host.read).status
        session.finish()


class ArenaFullError(Exception):
    """A contender's process could not be started."""


class Contest:
    """The contest of one trial. The `session` is the holder's, whose box was prepared: `argv` launches it."""

    def __init__(self, session: Session, host: ArenaHost, argv: list[str], locks: Locks) -> None:
        self._session, self._host, self._argv, self._locks = session, host, argv, locks
        self._began = time.monotonic()
        self._all: list[Contender] = []
        self._witness = Witness(host)
        self._killed: float | None = None
        self._recovered = self._tolerates = False
        self._refusals: list[str] = []
        self._bystanders: list[Running] = []
        self._pid = 0

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its begin."""
        return self._since(time.monotonic())

    def _since(self, when: float) -> float:
        return (when - self._began) * 1000

    def hold(self, *, until_seen: bool = True) -> bool:
        """Start the holder; return whether its payload runs."""
        self._start([self._new(argv=self._argv)])
        process = self._all[0].process
        self._pid = 0 if process is None else _pid_inside(process.pid)
        if until_seen:
            self._until(lambda: self._witness.saw(0) or self._all[0].over.is_set())
        return self._witness.alive(0)

    def come(self, count: int, *, waiting: bool = False) -> None:
        """Start so many contenders at once."""
        first = not self._all
        self._start([self._new(argv=self._argv if first and not at else None, waits=waiting) for at in range(count)])

    def _new(self, *, argv: list[str] | None = None, waits: bool = False) -> Contender:
        number = len(self._all)
        session = self._session if argv is not None else self._opponent(number)
        session.waits = waits
        if argv is not None and waits:
            argv = None
        self._witness.expect(number)
        self._all.append(one := Contender(number, session, argv, waits=waits or not self._refuses()))
        one.tolerated = self._tolerates
        return one

    def _refuses(self) -> bool:
        return bool(self._locks.busy or self._locks.words)

    def _opponent(self, number: int) -> Session:
        """Return the session of another user of the same box: with an own directory, but for what they share."""
        main = self._session
        work = main.box.work.parent / f"contender-{number}"
        make_directory(self._host.root, work)
        self._host.scratch.append(work)
        session = Session(main.target, self._host, main.box.number, work=work, stop=main.stop)
        session.token = main.box.run
        session.box = msgspec.structs.replace(main.box, work=work)
        for path in self._locks.shared:
            place, common = (Path(main.target.filled(path, box)) for box in (session.box, main.box))
            make_directory(self._host.root, place.parent)
            with opened(self._host.root, place.parent, os.O_PATH | os.O_DIRECTORY) as at:
                os.symlink(common, place.name, dir_fd=at)
        return session

    def _start(self, some: list[Contender]) -> None:
        for one in some:
            one.launched = time.monotonic()
            one.thread.start()
        for one in some:
            self._until(one.started.is_set)

    def _until(self, done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `done`, at most so many seconds; return whether it is."""
        until = None if seconds is None else time.monotonic() + seconds
        while not done():
            self._check()
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(_STEP)
        self._check()
        return True

    def _check(self) -> None:
        for one in self._all:
            if one.late is not None:
                raise one.late
            if isinstance(one.failure, ArenaFullError):
                raise TargetError(
                    f"{self._session.target.name}: the arena cannot hold {len(self._all)} contenders: {one.failure}; "
                    "give fewer --contenders"
                )
            if one.failure is not None:
                raise one.failure
            if time.monotonic() > one.launched + _HELD and not (one.over.is_set() or self._witness.saw(one.number)):
                self._check_visible(one)

    def _check_visible(self, one: Contender) -> None:
        if "begin " in printed(one.session, one.output):
            raise NotApplicableError(
                f"not applicable: the payload of {self._session.target.name} has no process that can be seen outside, "
                "so nobody can say which payloads run"
            )

    def wait_for_others(self) -> None:
        """Wait until all but the holder have ended, or, of those that wait, have had the time to begin so."""
        others = self._all[1:]
        queue = any(one.waits for one in others)
        self._until(lambda: all(one.over.is_set() for one in others), _QUEUED if queue else _HELD)

    def wait(self, *, holder: bool = False) -> None:
        """Let everybody run to the end; with `holder`, only once the holder has ended. Payloads end one by one."""
        if holder:
            self._until(self._all[0].over.is_set)
            return
        self._drain()
        if self._killed is not None:
            self._free()

    def _drain(self) -> None:
        """Keep the box from all that want it as long as it takes them to be refused, then end one payload at a time."""
        holds = time.monotonic() + (_QUEUED if any(one.waits for one in self._all) else _HELD)
        while not all(one.over.is_set() for one in self._all):
            self._check()
            holding = self._witness.holding()
            rest = [one for one in self._all if not one.over.is_set() and one.number not in holding]
            if holding and (not rest or time.monotonic() > holds):
                self._witness.end(holding[0])
            time.sleep(_STEP)
        self._check()

    def _free(self) -> None:
        """Let one after the other come until one is admitted, if need be after a recovery."""
        began = time.monotonic()
        while not self._came_in() and time.monotonic() < began + self._locks.within:
            if not self._recovered:
                self._recovered = True
                if wrong := self._session.recover():
                    self._refusals.append(f"after the kill: {wrong}")
            self.come(1)
            self._drain()

    def _came_in(self) -> list[Contender]:
        """Return those whose payload ran after the holder was killed."""
        killed = self._killed or 0
        return [one for one in self._all if not one.faulted and one.ended > killed and self._attempt(one).admitted]

    def wait_for_fault(self) -> bool:
        """Wait until the tracer has killed the holder or that has ended; return whether it was killed."""
        holder = self._all[0]

        def over() -> bool:
            if self._witness.holding()[:1] == [0]:
                self._witness.end(0)
            return bool(self._session.fired()) or holder.over.is_set()

        self._until(over)
        return bool(self._session.fired())

    def release(self) -> None:
        """End the holder's payload, as by itself."""
        self._witness.end(0)

    def signal(self, number: int) -> bool:
        """Send the holder's supervisor a signal; return false if it has ended."""
        process = self._all[0].process
        if process is None or process.pidfd < 0 or ended(process, 0):
            return False
        process.send_signal(number)
        return True

    def killed(self) -> None:
        """Note that the holder is killed."""
        self._all[0].faulted = True
        self._killed = time.monotonic()

    def tolerate(self) -> None:
        """Note that the lock is damaged from now on."""
        self._tolerates = True

    def recover(self) -> None:
        """Run the target's recovery while the holder has the box."""
        if (wrong := self._session.recover()) and not self._is_busy(wrong, self._session.commands[-1].exit or 0):
            self._refusals.append(f"while the box was in use: {wrong}")

    def take_pid(self) -> bool:
        """Start a process that has the pid of the holder, which has ended; return whether it got it."""
        output = os.memfd_create("leakcheck-bystander")
        words = 'echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid && { sleep 600 & echo "$!"; wait; }'
        try:
            process = self._host.start(["/bin/sh", "-c", words, "sh", str(self._pid)], {}, output)
            self._bystanders.append(process)
            self._until(lambda: bool(text(output).strip()) or ended(process, 0), _HELD)
            return self._pid > 1 and text(output).strip() == str(self._pid)
        finally:
            os.close(output)

    def lock_files(self, declared: str) -> list[str]:
        """Return the paths that exist of what the adapter's ``locks.files`` calls `declared`."""
        return [str(path) for path in find(self._host.root, self._session.target.filled(declared, self._session.box))]

    def elsewhere(self, content: bytes) -> str:
        """Return the path of a file with this content that is not the target's."""
        path = self._session.box.work.parent / "elsewhere" / "lock"
        self._host.scratch.append(path.parent)
        self._host.write(path, content)
        return str(path)

    def directory(self, path: str) -> AbstractContextManager[int]:
        """Yield a descriptor of the directory that commands see at `path`."""
        return opened(self._host.root, Path(path), os.O_PATH | os.O_DIRECTORY)

    def _is_busy(self, words: str, code: int) -> bool:
        return code in self._locks.busy or any(word in words for word in self._locks.words)

    def _attempt(self, one: Contender) -> Attempt:
        said = printed(one.session, one.output)
        window = self._witness.window(one.number)
        return Attempt(
            number=one.number,
            waits=one.waits,
            faulted=one.faulted,
            tolerated=one.tolerated,
            admitted=window is not None or "begin " in said,
            complete="end " in said,
            refused=one.status != "OK" and self._is_busy(f"{one.words} {said}", one.code),
            status=one.status,
            words=one.words,
            launched=self._since(one.launched),
            ended=self._since(one.ended),
            window=window,
        )

    def history(self) -> History:
        """Return what happened."""
        offset = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        attempts = [self._attempt(one) for one in self._all]
        first = min((one.window[0] - offset for one in map(self._attempt, self._came_in()) if one.window), default=None)
        return History(
            attempts=attempts,
            overlaps=sorted(self._witness.overlaps),
            killed=None if self._killed is None else self._since(self._killed),
            free=None if first is None else self._since(first),
            recovered=self._recovered,
            within=self._locks.within * 1000,
            refusals=self._refusals,
        )

    @contextlib.contextmanager
    def open(self) -> Generator[None, None, None]:
        """Witness until the end, and let nothing of ours stay."""
        self._witness.start()
        try:
            yield
        finally:
            for one in self._all:
                self._witness.end(one.number)
            for process in self._bystanders:
                kill(process, functools.partial(descendants, process), "tree")
                process.wait(_HELD)
                process.close()
            self._witness.close()

    def close(self) -> None:
        """Remove what the contenders' own directories had, and close what they printed into."""
        for one in self._all:
            if one.session is not self._session:
                self._tidy(one.session)
            if one.over.is_set():
                os.close(one.output)

    def _tidy(self, session: Session) -> None:
        for path in _made(session):
            with contextlib.suppress(OSError), self.directory(str(path.parent)) as at:
                os.unlink(path.name, dir_fd=at)
        work = session.box.work
        with contextlib.suppress(OSError), self.directory(str(work.parent)) as at:
            os.rmdir(work.name, dir_fd=at)


def _made(session: Session) -> Iterator[Path]:
    yield from filter(None, [session.target.status_file(session.box), session.target.output_file(session.box)])


def _pid_inside(pid: int) -> int:
    """Return the pid of a process of the arena as the arena shows it; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nNSpid:")[2].split("\n", 1)[0].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


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
