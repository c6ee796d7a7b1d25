"""The sessions of those who contend with the holder of a box: other users, each with a directory of its own."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from leakcheck.targets.adapter import Locks
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.rootfs import make_directory, opened
from leakcheck.trials.session import Session


def opponent(main: Session, host: ArenaHost, number: int, locks: Locks) -> Session:
    """Return the session of another user of the box of `main`: with an own directory, but for what they share."""
    work = main.box.work.parent / f"contender-{number}"
    make_directory(host.root, work)
    host.scratch.append(work)
    session = Session(main.target, host, main.box.number, work=work, stop=main.stop)
    session.token = main.box.run
    session.box = msgspec.structs.replace(main.box, work=work)
    for path in locks.shared:
        place, common = (Path(main.target.filled(path, box)) for box in (session.box, main.box))
        make_directory(host.root, place.parent)
        with opened(host.root, place.parent, os.O_PATH | os.O_DIRECTORY) as at:
            os.symlink(common, place.name, dir_fd=at)
    return session


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
