"""Facts of the machine, and of what is tested: results of different ones are not put together."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from leakcheck import __version__
from leakcheck.targets import Target, is_builtin


def machine_facts() -> dict[str, Any]:
    """Return the kernel, the processors, the memory in MiB, and how cgroups are mounted."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "cgroups": _cgroups(),
        "uid": os.geteuid(),
    }


def _content(path: str) -> str:
    """Return a digest of a program, which is the same on each machine; empty if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _cgroups() -> str:
    """Return ``v1``, ``v2``, ``hybrid`` or ``none`` (cgroups(7))."""
    kinds = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        kinds.add(line.rpartition(b" - ")[2].split(b" ")[0])
    first, second = b"cgroup" in kinds, b"cgroup2" in kinds
    return "hybrid" if first and second else "v1" if first else "v2" if second else "none"


def loaded_by(target: Target) -> str:
    """Return what loads it again, in another process too: its name, or the path of its adapter."""
    return target.name if is_builtin(target) else str(Path(target.path).absolute())


def tested_facts(target: Target) -> dict[str, Any]:
    """Return what is tested: the target's version, adapter and programs, and which leakcheck does it."""
    return {
        "leakcheck": __version__,
        "version": target.version(),
        "path": loaded_by(target),
        "adapter": hashlib.sha256(Path(target.path).read_bytes()).hexdigest(),
        "contents": {Path(path).name: content for path in target.programs() if (content := _content(path))},
        "programs": {path: [*identity] for path, identity in target.identities().items()},
    }
