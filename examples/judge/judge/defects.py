"""Defects that can be switched on by JUDGE_DEFECT, to measure whether a test finds them. Without it there are none."""

import os
import sys

DEFECTS = {
    "cap-ignored": "a worker starts a job without counting those that run: the global limit does not hold",
    "checksum-ignored": "a chunk with a wrong checksum is accepted",
    "chunk-twice": "a repeated chunk is appended again instead of being refused",
    "clean-active": "clean-old also removes jobs that are not finished",
    "existence-told": "the answer for another tenant's job differs from that for a job that does not exist",
    "expired-url": "a signed URL is accepted after it has expired",
    "fd-left": "the API leaves a descriptor open at each creation of a job",
    "foreign-job": "a job and its result are shown to every tenant that knows the id",
    "ghost-run": "a refresh of the page of a job submits the job again",
    "idempotency-ignored": "the same Idempotency-Key makes a second job",
    "lost-cancel": "the worker sets `running` from an old snapshot and overwrites a cancellation",
    "orphan-after-cancel": "the submission of a cancelled job is left running",
    "quota-race": "the quota is read, decided and written in separate steps",
    "redis-double": "an id from Redis is run without asking whether it still waits, and the fallback queues it again",
    "redis-drop": "workers take jobs from Redis alone, and a job that Redis did not accept is forgotten",
    "rerun-finished": "the recovery at the start runs finished jobs again",
    "signature-ignored": "a tampered signature of a result's URL is accepted",
    "ssrf-decimal": "the check knows only dotted addresses and names; http://2130706433/ reaches the loopback",
    "ssrf-redirect": "the address is checked at the first request only, not after a redirect",
    "stuck-running": "the job of a killed worker stays `running`",
    "tenant-mismatch": "a user_id in the body that is not the tenant's is ignored",
    "terminal-overwritten": "a cancellation overwrites the state of a finished job",
    "upload-left": "the file of an upload that was ended stays",
    "upload-unlimited": "an upload may be larger than the limit",
    "url-reused": "the signed URL is made once and not at each request",
    "work-left": "the working directory of a run stays",
}

_active = frozenset(name.strip() for name in os.environ.get("JUDGE_DEFECT", "").split(",") if name.strip())
if unknown := _active - DEFECTS.keys():
    sys.exit(f"judge: JUDGE_DEFECT: unknown {', '.join(sorted(unknown))}; known: {', '.join(DEFECTS)}")


def planted(name: str) -> bool:
    """Return whether this defect was switched on."""
    assert name in DEFECTS, name
    return name in _active
