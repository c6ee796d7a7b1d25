"""The evidence of campaigns, in one SQLite file: what was tried, what came of it, and where.

A `Store` records campaigns as their trials end, and lets one go on that was cut off.
"""

from leakcheck.evidence.merge import merge
from leakcheck.evidence.runs import Run
from leakcheck.evidence.store import Store, StoreRecording
from leakcheck.evidence.verification import verification, verify_recordings

__all__ = ["Run", "Store", "StoreRecording", "merge", "verification", "verify_recordings"]
