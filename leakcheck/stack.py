"""Walks the call stack of a stopped process, in a process of its own: the tables of a hostile program may hang it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from leakcheck._native import build_id, walk_stack

__all__ = ["Place", "walk"]

Place: TypeAlias = tuple[int | None, int, str | None]
"""The mapping in which a function is, its address in the file, and its name, as far as they are known."""

_SECONDS = 5
"""Processor time of a walk."""
_MEMORY = 4 << 30
_PROGRAM = 64 << 20
_DEBUG = Path("/usr/lib/debug/.build-id")
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from leakcheck.stack import child; child(sys.argv[2:])"


def walk(log: int, line: Mapping[str, Any], seconds: int = _SECONDS) -> list[Place] | None:
    """Return the functions of a stack, the innermost first; None if the walk did not come to its end.

    `log` has the bytes of the stack and of the programs where `line`, of the tracer, says.
    """
    argv = [sys.executable, "-I", "-S", "-c", _CHILD, str(Path(__file__).parents[1]), str(log), str(seconds)]
    done = subprocess.run(
        argv,
        input=json.dumps(line).encode(),
        pass_fds=[log],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return None if done.returncode else [(at, address, name) for at, address, name in json.loads(done.stdout)]


def child(words: list[str]) -> None:
    """Walk as `walk` asks for, under limits, and print what was found."""
    log, seconds = map(int, words)
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    line = json.load(sys.stdin)
    files: dict[int, tuple[bytes, bytes]] = {0: (b"", b"")}
    for one in line["mappings"]:
        if one["at"] not in files:
            content = os.pread(log, one["size"], one["at"])
            files[one["at"]] = content, _debug_file(content)
    at = line["stack"]
    stack = os.pread(log, at["size"], at["at"])
    mappings = [(one["start"], one["end"], one["offset"], *files[one["at"]]) for one in line["mappings"]]
    json.dump(walk_stack((at["pc"], at["sp"], at["fp"]), stack, mappings), sys.stdout)


def _debug_file(program: bytes) -> bytes:
    """Return the content of a program's separate debug file, where distributions have it; empty if there is none."""
    name = build_id(program)
    path = _DEBUG / name[:2] / f"{name[2:]}.debug" if name else None
    try:
        return path.read_bytes() if path is not None and path.stat().st_size <= _PROGRAM else b""
    except OSError:
        return b""
