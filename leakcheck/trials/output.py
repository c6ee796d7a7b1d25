"""The output of commands, kept in memory."""

import contextlib
import os
from collections.abc import Generator


@contextlib.contextmanager
def memory() -> Generator[int, None, None]:
    """Yield a descriptor for output: memory, because the reader of a pipe would wait for an orphan that holds it."""
    output = os.memfd_create("leakcheck-output")
    try:
        yield output
    finally:
        os.close(output)


def text(output: int) -> str:
    """Return what was printed to the descriptor of `memory`, at most 64 KiB."""
    return os.pread(output, 1 << 16, 0).decode(errors="replace")


def ends(output: int) -> str:
    """Return the first and the last 64 KiB of what was printed: who prints much says at the end why it failed."""
    size, most = os.fstat(output).st_size, 1 << 16
    if size <= 2 * most:
        return os.pread(output, 2 * most, 0).decode(errors="replace")
    return "\n".join(os.pread(output, most, at).decode(errors="replace") for at in (0, size - most))


def last_words(output: int, none: str = "it printed nothing") -> str:
    """Return its last lines, joined into one; `none` if there are none."""
    size = os.fstat(output).st_size
    last = os.pread(output, 400, max(0, size - 400)).decode(errors="replace")
    return " | ".join(line.strip() for line in last.splitlines()[-3:] if line.strip()) or none
