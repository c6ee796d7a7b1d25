"""One of several runs that contend for a box, in a thread of its own."""

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leakcheck.errors import LateError, TargetError
from leakcheck.trials.contender_program import contender
from leakcheck.trials.history import Attempt
from leakcheck.trials.output import last_words
from leakcheck.trials.payload import printed
from leakcheck.trials.session import Session
from leakcheck.trials.witness import Witness

if TYPE_CHECKING:
    from leakcheck.trials.host import Running


class ArenaFullError(Exception):
    """A contender's process could not be started."""


class Contender:
    """One run, in a thread of its own. What it says of its end is there once it is `over`."""

    def __init__(self, number: int, session: Session, argv: list[str] | None, *, waits: bool) -> None:
        self.number, self.session, self.waits = number, session, waits
        self.submission = contender(number)
        self.process: Running | None = None
        self.output = os.memfd_create("leakcheck-output")
        self.started, self.over = threading.Event(), threading.Event()
        self.faulted = self.tolerated = False
        self.status, self.words, self.code = "", "", -1
        self.said = ""
        """What its payload had printed when it was over."""
        self.launched = time.monotonic()
        self.ended = 0.0
        self.begun: float | None = None
        """When its payload was heard of while it was not seen."""
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
            # Whose payload runs on may say more later, and has reported too early.
            self.said = printed(self.session, self.output)
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

    def attempt(self, witness: Witness, began: float, is_busy: Callable[[str, int], bool]) -> Attempt:
        """Return what it came to, in a contest that `began` then; `is_busy` knows words and exit code of a refusal."""
        said = printed(self.session, self.output)
        window = witness.window(self.number)
        # Not what another one's payload printed.
        admitted = window is not None or f"begin {self.number} " in said
        starts = witness.starts(self.number)
        return Attempt(
            number=self.number,
            waits=self.waits,
            faulted=self.faulted,
            tolerated=self.tolerated,
            admitted=admitted,
            unheld=admitted and not starts,
            copied=witness.copied(self.number),
            starts=starts,
            complete=f"end {self.number} " in self.said and witness.released(self.number),
            refused=self.status != "OK" and is_busy(f"{self.words} {said}", self.code),
            status=self.status,
            words=self.words,
            launched=(self.launched - began) * 1000,
            ended=(self.ended - began) * 1000,
            window=window,
            told=_told(self.number, said),
        )


def _told(number: int, said: str) -> tuple[int, int] | None:
    """Return when a payload that ran to its end says that it began and ended, in nanoseconds."""
    # A date(1) without nanoseconds tells too little.
    times = rf"^begin {number} (\d{{18,20}})$.*?^end {number} (\d{{18,20}})$"
    found = re.search(times, said, re.MULTILINE | re.DOTALL | re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def pid_inside(pid: int) -> int:
    """Return the pid of a process of the arena as the arena shows it; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nNSpid:")[2].split("\n", 1)[0].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
