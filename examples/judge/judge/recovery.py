"""What makes a kill harmless: dead workers' jobs wait again, silent ones fail, and garbage is removed."""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from judge.defects import planted
from judge.pending import Pending
from judge.sandbox import Sandbox
from judge.settings import Settings, UnusableError
from judge.store import Store

_log = logging.getLogger("judge")
_MOST_SLOTS = 64


def _lock(settings: Settings, slot: int) -> int | None:
    """Return the descriptor that holds the slot's lock, or None if somebody else holds it; the kernel frees it."""
    # Never removed: a lock on a removed file would keep nobody out.
    descriptor = os.open(settings.workers / f"{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def own_slot(settings: Settings) -> Iterator[int]:
    """Take a slot for a worker's life."""
    for slot in range(_MOST_SLOTS):
        if (descriptor := _lock(settings, slot)) is not None:
            try:
                yield slot
            finally:
                os.close(descriptor)
            return
    raise UnusableError(f"{_MOST_SLOTS} workers run already")


def recover_slot(store: Store, sandbox: Sandbox, pending: Pending, slot: int) -> bool:
    """Queue again what a dead worker ran, once its sandbox is empty; the caller holds the slot's lock."""
    if planted("stuck-running"):
        return True
    if not sandbox.empty(slot):
        return False
    for job_id in store.recover_slot(slot):
        pending.put(job_id)
    return True


def sweep(store: Store, settings: Settings, sandbox: Sandbox, pending: Pending) -> None:
    """Find dead and silent workers and ended uploads; called every second by whoever runs."""
    for slot in store.busy_slots():
        if (descriptor := _lock(settings, slot)) is not None:
            try:
                recover_slot(store, sandbox, pending, slot)
            except UnusableError as error:
                _log.warning("box %d: %s; trying again", slot, error)
            finally:
                os.close(descriptor)
    store.stall(settings.stall)
    store.fail_stalled(4 * settings.stall)
    remove_ended_uploads(store, settings)


def remove_ended_uploads(store: Store, settings: Settings) -> int:
    """Remove uploads that expired or whose job has ended, and return how many."""
    if planted("upload-left"):
        return 0
    with store.change() as db:
        ended = db.execute(
            "DELETE FROM uploads WHERE (job IS NULL AND expires < ?) OR (job IS NOT NULL AND NOT EXISTS ("
            "SELECT 1 FROM jobs WHERE jobs.id = uploads.job"
            " AND (worker IS NOT NULL OR state IN ('queued', 'running', 'stalled')))) RETURNING id",
            (time.time(),),
        ).fetchall()
    for row in ended:
        (settings.uploads / row[0]).unlink(missing_ok=True)
    return len(ended)


def remove_garbage(store: Store, settings: Settings) -> int:
    """Remove files that no row names, and return how many.

    They are listed before the rows are read: a file's row was there before the file.
    """
    found = [path for at in (settings.work, settings.results, settings.uploads) for path in at.iterdir()]
    kept = store.files()
    garbage = [path for path in found if path.name not in kept]
    for path in garbage:
        if planted("work-left") and path.parent.name == "work":
            continue
        if planted("upload-left") and path.parent.name == "uploads":
            continue
        remove(path)
    return len(garbage)


def remove(path: Path) -> None:
    """Remove a file or a tree, which may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
