"""The sessions of those who contend with the holder of a box: other users, each with a directory of its own."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from leakcheck.targets.adapter import Locks
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.rootfs import make_directory, opened
from leakcheck.trials.session import Session


class Opponent(Session):
    """The session of another user of the box of `main`: with an own directory `work`, but for the paths `shared`.

    With a `number` it is of another box.
    """

    def __init__(
        self, main: Session, host: ArenaHost, work: Path, shared: Sequence[str], *, number: int | None = None
    ) -> None:
        super().__init__(main.target, host, main.box.number if number is None else number, work=work, stop=main.stop)
        if number is None:
            self.token = main.box.run
            self.box = msgspec.structs.replace(main.box, work=work)
        self._shared = {main.target.filled(path, self.box): main.target.filled(path, main.box) for path in shared}

    def spelled(self, argv: Sequence[str]) -> Sequence[str]:
        """Return a command with the shared paths of the first user."""
        for own, common in self._shared.items():
            # Not the start of a longer name.
            argv = [re.sub(rf"{re.escape(own)}(?![\w.-])", common.replace("\\", r"\\"), word) for word in argv]
        return argv


def opponent(main: Session, host: ArenaHost, number: int, locks: Locks) -> Session:
    """Return such a session, with a new directory."""
    return Opponent(main, host, own_directory(main, host, f"contender-{number}"), locks.shared)


def own_directory(main: Session, host: ArenaHost, name: str) -> Path:
    """Make a directory for another user beside that of `main`, and return it."""
    work = main.box.work.parent / name
    make_directory(host.root, work)
    host.scratch.append(work)
    return work


def tidy(host: ArenaHost, session: Session) -> None:
    """Remove the directory of such a session, and the target's status and output in it."""
    for path in _made(session):
        _remove(host, path, os.unlink)
    _remove(host, session.box.work, os.rmdir)


def _remove(host: ArenaHost, path: Path, how: Callable[..., None]) -> None:
    with contextlib.suppress(OSError), opened(host.root, path.parent, os.O_PATH | os.O_DIRECTORY) as at:
        how(path.name, dir_fd=at)


def _made(session: Session) -> Iterator[Path]:
    yield from filter(None, [session.target.status_file(session.box), session.target.output_file(session.box)])
