"""The log in which a target tells of damage to its state: what was added to it, whatever else happened to it."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from leakcheck.trials.rootfs import opened
from leakcheck.trials.session import Session

__all__ = ["LogMark", "mark_log", "noted"]

# Of a longer log, the end is read.
_MOST = 4 << 20


class LogMark(NamedTuple):
    """A log at some instant: its size, and its content, or the end of that."""

    size: int = 0
    content: bytes = b""


def mark_log(session: Session) -> LogMark:
    """Return the target's log as it is now; an empty one if it has none, or it is none that can be read."""
    path = session.target.filled(session.target.adapter.damage.log, session.box)
    if not path:
        return LogMark()
    try:
        with opened(session.host.root, Path(path), os.O_RDONLY | os.O_NONBLOCK) as log:
            found = os.fstat(log)
            if not stat.S_ISREG(found.st_mode):
                return LogMark()
            content = os.pread(log, _MOST, max(0, found.st_size - _MOST))
            return LogMark(found.st_size, content)
    except OSError:
        return LogMark()


def noted(session: Session, before: LogMark) -> bool | None:
    """Return whether the log tells of a damaged state file since it was `before`; None if there is no log."""
    damage = session.target.adapter.damage
    new = _added(before, mark_log(session))
    return any(word.encode() in new for word in damage.words) if damage.log else None


def _added(before: LogMark, after: LogMark) -> bytes:
    grown = after.size - before.size
    common = min(len(before.content), len(after.content) - grown)
    if grown >= 0 and common >= 0:
        end = len(after.content) - grown
        if before.content[len(before.content) - common :] == after.content[end - common : end]:
            return after.content[end:]
    # It was written again, or is another file: a line that it had before is none of now.
    return b"\n".join((Counter(after.content.splitlines()) - Counter(before.content.splitlines())).elements())
