"""What stands in the lock files of a target, and what of it a disk keeps."""

from pathlib import Path

from leakcheck.targets.adapter import Locks
from leakcheck.trials.boot import lasts
from leakcheck.trials.rootfs import find
from leakcheck.trials.session import Session
from leakcheck.trials.state_files import found_at

__all__ = ["locks_on_disk"]


def locks_on_disk(session: Session, locks: Locks) -> dict[Path, bytes]:
    """Return the lock files of the box that the next boot has, too, and their content."""
    paths = [path for one in locks.files for path in find(session.host.root, session.filled(one))]
    found = {path: found_at(session.host, path, directories=True) for path in paths if lasts(session.target, str(path))}
    return {path: content for path, content in found.items() if isinstance(content, bytes)}
