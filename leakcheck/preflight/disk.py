"""Places for output and temporary files: they can be written, and have space and inodes left."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from leakcheck.errors import reason
from leakcheck.preflight.outcome import Outcome

_LEAST_BYTES, _LEAST_INODES = 1 << 30, 10_000
_SAMPLE = 4 << 20


def check(directory: Path) -> Iterator[Outcome]:
    """Yield what there is in the working directory, and in that of temporary files if it is on another file system."""
    places = {"output": Path.cwd(), "temporary": directory.parent}
    seen = set()
    for step, path in places.items():
        if (device := path.stat().st_dev) not in seen:
            seen.add(device)
            yield _place(step, path)


def _place(step: str, path: Path) -> Outcome:
    told = os.statvfs(path)
    free = told.f_bavail * told.f_frsize
    where = f"{path}: {free / (1 << 30):.1f} GiB free"
    began = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(os.urandom(_SAMPLE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        rights = f"make it writable for user {os.geteuid()}, or mount it writable"
        return Outcome("disk", step, "fail", f"{where}, but it cannot be written: {reason(error)}", [rights])
    took = time.monotonic() - began
    if free < _LEAST_BYTES:
        fix = [f"free space there: du -xh {path} | sort -h | tail", "or set TMPDIR and the output to another disk"]
        return Outcome("disk", step, "fail", f"{where}, under {_LEAST_BYTES >> 30} GiB", fix)
    # Some file systems (btrfs) count no inodes.
    if told.f_files and told.f_favail < _LEAST_INODES:
        fix = [f"remove small files there: du -x --inodes {path} | sort -n | tail"]
        return Outcome("disk", step, "fail", f"{where}, but only {told.f_favail} inodes", fix)
    return Outcome("disk", step, "pass", f"{where}, {_SAMPLE >> 20} MiB written and synced in {took * 1000:.0f} ms")
