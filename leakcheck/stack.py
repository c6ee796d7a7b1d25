"""Walks the call stack of a stopped process, in a process of its own: the tables of a hostile program may hang it."""

import json
import os
import resource
import struct
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
_SYMBOLS = b".gnu_debugdata\0"
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
            files[one["at"]] = content, _debug_file(content) or _symbols_within(content)
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


def _symbols_within(program: bytes) -> bytes:
    """Return the symbols that a stripped program has compressed in itself; empty if there are none.

    Fedora's and its relatives' programs do: MiniDebugInfo, an ELF file in the section .gnu_debugdata (gdb's manual).
    """
    try:
        import lzma  # A Python may lack it.

        # Elf64_Ehdr and Elf64_Shdr (elf(5)).
        (start,) = struct.unpack_from("<Q", program, 0x28)
        size, count, names = struct.unpack_from("<HHH", program, 0x3A)
        sections = [struct.unpack_from("<IIQQQQ", program, start + number * size) for number in range(count)]
        for name, _, _, _, at, length in sections:
            if program[sections[names][4] + name :].startswith(_SYMBOLS):
                unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_PROGRAM)
                return unpacked.decompress(program[at : at + length], _PROGRAM)
    except (ImportError, struct.error, IndexError, lzma.LZMAError):
        return b""
    return b""
