"""Deliver a result: save it to its file first, then print it. A failure never hides the verdict's exit code."""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from leakcheck.errors import UsageError
from leakcheck.printable import printable

if TYPE_CHECKING:
    from leakcheck.atomic_write import Output

BESIDE = ("-wal", "-shm", "-journal", "-lock")
"""How the names of the files go on that are beside a store."""
NOT_DELIVERED = 3
"""The exit code if a clean verdict could not be delivered."""


def output_to(path: Path | None) -> contextlib.AbstractContextManager["Output | None"]:
    """Open the output file, if there is one, before the run; raise `UsageError` if that fails."""
    if path is None:
        return contextlib.nullcontext()
    from leakcheck.atomic_write import Output

    return Output(path)


def check_apart(
    store: Path | None, output: Path | None, reports: Sequence[Path] = (), metrics: Path | None = None
) -> None:
    """Raise `UsageError` if one of the files would replace another one, or the store."""
    of_store = {f"{os.path.realpath(store)}{end}" for end in ("", *BESIDE)} if store is not None else set()
    named: dict[str, str] = {}
    for option, path in [("-o", output), *(("--report", one) for one in reports), ("--metrics-file", metrics)]:
        # Several may be written to a device or a FIFO.
        if path is None or _is_special(path):
            continue
        place = os.path.realpath(path)
        if place in of_store:
            raise UsageError(f"{option} {path}: is the store, or belongs to it; name another file")
        if place in named:
            raise UsageError(f"{option} {path}: is the file of {named[place]}, too; name another one")
        named[place] = option


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def deliver(code: int, text: str, output: "Output | None", show: Callable[[], None] | None) -> int:
    """Save the result `text`, then call `show`, or print the text on stdout if there is no `show`.

    Returns `code`, but `NOT_DELIVERED` instead of 0 if the file or stdout could not be written, or if the result was
    neither shown nor saved.
    """
    code = code if output is None else save(code, text, output)
    lost = False
    try:
        if show is None:
            print_json(text)
        else:
            show()
            sys.stderr.flush()
    except (OSError, SystemExit) as error:
        # rich calls sys.exit(1) on a broken pipe.
        if show is None or output is None:
            gone = isinstance(error, (BrokenPipeError, SystemExit))
            notify(f"unknown: {'the reader of the output closed it' if gone else error}")
            lost = True
        drop(sys.stdout if show is None else sys.stderr)
    return code or (NOT_DELIVERED if lost else 0)


def save(code: int, text: str, output: "Output") -> int:
    """Save `text`; return `code`, but `NOT_DELIVERED` instead of 0 if that fails, which is reported."""
    try:
        output.save(text)
    except UsageError as error:
        notify(str(error))
        return code or NOT_DELIVERED
    return code


def print_json(text: str) -> None:
    """Print JSON on stdout. ``##`` is escaped, so that a CI runner finds no command in it; it parses back unchanged."""
    print(text.replace("##", "#\\u0023"), flush=True)


def notify(message: str) -> None:
    """Print one line on stderr, if stderr can be written."""
    with contextlib.suppress(OSError):
        print("leakcheck:", printable(" ".join(message.split())), file=sys.stderr, flush=True)


def show_progress(text: str) -> None:
    """Replace the last line on stderr by `text`, if stderr is a terminal that can be written."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


def drop(stream: TextIO) -> None:
    """Discard a stream's buffered output: otherwise Python fails to flush it at exit and exits with 120."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, stream.fileno())
    os.close(null)
    with contextlib.suppress(OSError):
        stream.flush()
