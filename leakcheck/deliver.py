"""Hand a result over: into its file first, then to people or on stdout. The verdict's exit code is not lost to that."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from leakcheck.atomic_write import Output
from leakcheck.errors import UsageError
from leakcheck.render import printable

__all__ = ["NOT_DELIVERED", "deliver", "drop", "output_to", "print_json", "say"]

NOT_DELIVERED = 3
"""The exit code where a clean verdict did not reach who asked for it."""


def output_to(path: Path | None) -> contextlib.AbstractContextManager[Output | None]:
    """Open the place for a result before the run, if it is wanted in a file; raise `UsageError`."""
    return contextlib.nullcontext() if path is None else Output(path)


def deliver(code: int, text: str, output: Output | None, show: Callable[[], None] | None) -> int:
    """Save the result `text`, then show it by `show`, or without that print it on stdout.

    Returns `code`, but `NOT_DELIVERED` in the place of 0 where its file could not be written, stdout not be printed to,
    or where it was shown to nobody and is in no file.
    """
    lost = False
    if output is not None:
        try:
            output.save(text)
        except UsageError as error:
            lost = True
            say(str(error))
    try:
        if show is None:
            print_json(text)
        else:
            show()
            sys.stderr.flush()
    except (OSError, SystemExit) as error:
        # rich makes sys.exit(1) of a broken pipe.
        if show is None or output is None:
            gone = isinstance(error, (BrokenPipeError, SystemExit))
            say(f"unknown: {'the reader of the output went away' if gone else error}")
            lost = True
        drop(sys.stdout if show is None else sys.stderr)
    return code or (NOT_DELIVERED if lost else 0)


def print_json(text: str) -> None:
    """Print JSON on stdout, in which a CI runner finds no command: ``##`` is written so that it reads back the same."""
    print(text.replace("##", "#\\u0023"), flush=True)


def say(message: str) -> None:
    """Say one line on stderr, if it can be said there."""
    with contextlib.suppress(OSError):
        print("leakcheck:", printable(" ".join(message.split())), file=sys.stderr, flush=True)


def drop(stream: TextIO) -> None:
    """Let what is still to be written to a stream vanish: Python would fail at its end, and exit with 120."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, stream.fileno())
    os.close(null)
    with contextlib.suppress(OSError):
        stream.flush()
