"""What an operator runs by hand or from cron; each prints what it did."""

import os

from judge import recovery, sandbox
from judge.pending import Pending
from judge.settings import Settings, UnusableError
from judge.store import Store


def verify_setup(settings: Settings) -> int:
    """Check everything that a judge needs; print a line for each, and return 1 if something is missing."""
    missing = False

    def told(what: str, problem: str | None, note: str = "") -> None:
        nonlocal missing
        missing = missing or problem is not None
        print(f"{'FAIL' if problem else 'ok'}  {what}: {problem or note}")

    Store(settings.data).secret()
    told("data", None if os.access(settings.data, os.W_OK) else "not writable", str(settings.data))
    told("keys", None, f"{len(settings.keys)} of {len(set(settings.keys.values()))} tenants")
    try:
        with recovery.own_slot(settings) as slot:
            box = sandbox.of(settings)
            box.empty(slot)
            box.check(slot, settings.workers / f"{slot}.check")
        told("sandbox", None, f"{box.refbox} runs a program")
    except UnusableError as error:
        told("sandbox", str(error))
    answers = Pending(settings.redis).answers()
    notes = {
        None: "none; the database is the queue",
        True: "answers",
        False: "does not answer; the database is the queue",
    }
    told("redis", None, notes[answers])
    return int(missing)


def fail_stale(settings: Settings) -> int:
    """Fail jobs whose worker has given no sign of life for the stall time."""
    store = Store(settings.data)
    store.stall(settings.stall)
    print(f"failed {store.fail_stalled(settings.stall)} stale jobs")
    return 0


def clean_old(settings: Settings) -> int:
    """Remove finished jobs that are older than JUDGE_KEEP, expired uploads, and files that no row names."""
    store = Store(settings.data)
    jobs, ended = store.remove_old(settings.keep), recovery.remove_ended_uploads(store, settings)
    files = recovery.remove_garbage(store, settings)
    print(f"removed {jobs} jobs, {ended} uploads, {files} files without a job")
    return 0
