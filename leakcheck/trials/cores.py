"""Core files among what was left: what the kernel writes of a process that a bug has ended (core(5))."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from leakcheck.report import Leak
from leakcheck.trials.host import Host
from leakcheck.trials.similarity import place_of

__all__ = ["core_files"]

# elf(5): e_ident, then e_type.
_MAGIC, _TYPE_AT, _CORE = b"\x7fELF", 16, 4
_LITTLE = 1


def core_files(host: Host, leaks: Iterable[Leak]) -> Iterator[str]:
    """Yield the paths of the files that are cores, whatever their names."""
    for leak in leaks:
        if leak.kind == "file" and leak.class_ != "damaged" and _is_core(host, path := place_of(leak)):
            yield path


def _is_core(host: Host, path: str) -> bool:
    try:
        head = host.read(Path(path))[: _TYPE_AT + 2]
    except (OSError, ValueError):
        return False
    order = "<" if head[5:6] == bytes([_LITTLE]) else ">"
    return len(head) == _TYPE_AT + 2 and head.startswith(_MAGIC) and struct.unpack(f"{order}H", head[-2:]) == (_CORE,)
