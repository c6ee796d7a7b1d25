"""The process of a command: its standard streams, Ctrl-C, and the exit code of each error."""

import contextlib
import io
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

import typer

from leakcheck.commands import INTERRUPTED, LEAKED, TARGET, UNKNOWN, USAGE
from leakcheck.deliver import drop, notify
from leakcheck.errors import (
    CompileError,
    GivenUp,
    NativeError,
    NotApplicableError,
    TargetError,
    UnavailableError,
    UsageError,
)

_LEAST_MEMORY = 128 << 20
_M_ARENA_MAX = -8
"""malloc.h of the GNU C library."""


def run_and_exit(command: Callable[[], object]) -> NoReturn:
    """Run `command`, which parses the command line, and exit; a failure is one line on stderr."""
    _fill_closed_stdio()
    warnings.showwarning = lambda message, *_: notify(f"warning: {message}")
    code = run(command)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Drop the buffer: if it failed again at exit, Python would exit with 120.
            drop(stream)
            # Nobody has read the "clean" verdict; every other code means "not clean" by itself.
            code = code or _fail(UNKNOWN, f"unknown: {error}")
    sys.exit(code)


def _fill_closed_stdio() -> None:
    """Open /dev/null on each closed descriptor of 0 to 2, so that no other file gets its number and our output.

    Writes to it fail with EBADF, as on a closed descriptor; for the guarded command it is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open() returns the lowest free number, which is this one.
            os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDONLY)
    sys.stdout = sys.stdout or _writer(1)
    sys.stderr = sys.stderr or _writer(2)
    for stream in (sys.stdout, sys.stderr):
        # Characters that the locale's encoding lacks are written as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _writer(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def run(command: Callable[[], object]) -> int:
    """Return the exit code of `command`; Ctrl-C ends it with 130."""
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return _outcome(command)
    except (GivenUp, KeyboardInterrupt) as error:
        _fail(INTERRUPTED, str(error) or "interrupted: no verdict; the command may still be running")
        # A thread may be inside the native core: do not wait for it.
        os._exit(INTERRUPTED)
    finally:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _outcome(command: Callable[[], object]) -> int:
    try:
        _fit_memory()
        code = command()
    except typer.TyperException as error:
        return _fail(USAGE, error.format_message())
    except (UsageError, CompileError) as error:
        return _fail(USAGE, str(error))
    except TargetError as error:
        return _fail(TARGET, str(error))
    except (BrokenPipeError, SystemExit) as error:
        # A completion ends so; fish reads its exit code.
        if isinstance(error, SystemExit) and (not error.code or "_LEAKCHECK_COMPLETE" in os.environ):
            return error.code if isinstance(error.code, int) else 0
        # On a broken pipe, rich and typer call sys.exit(1), which would mean "leaked".
        return _fail(UNKNOWN, "unknown: the reader of the output closed it")
    except UnicodeEncodeError as error:
        return _fail(USAGE, f"{error.object!r}: not valid UTF-8; only file names may be anything else")
    except (MemoryError, RecursionError) as error:
        what = "memory" if isinstance(error, MemoryError) else "stack: the input is nested too deeply"
        return _fail(UNKNOWN, f"unknown: out of {what}")
    except (NativeError, NotApplicableError, UnavailableError, OSError) as error:
        return _fail(UNKNOWN, f"unknown: {error}")
    except Exception as error:  # noqa: BLE001 - a crashed check is unknown, whatever the cause
        what = f"{type(error).__name__}: {error}"
        return _fail(UNKNOWN, f"unknown: internal error, {what}; set LEAKCHECK_DEBUG=1 for a traceback")
    # typer exits with 1 where it does not know the user's shell.
    if code == LEAKED and sys.argv[1:2] in (["--show-completion"], ["--install-completion"]):
        return USAGE
    return code if isinstance(code, int) else 0


def _fit_memory() -> None:
    """If the address space is limited, keep malloc from reserving 64 MiB of it per thread (mallopt(3))."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    if limit < _LEAST_MEMORY:
        needed = f"leakcheck needs {_LEAST_MEMORY >> 20} MiB"
        raise UsageError(f"the address space is limited to {limit >> 20} MiB (ulimit -v): {needed}")
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _fail(code: int, message: str) -> int:
    # If stderr is closed or full, the exit code is the only report.
    with contextlib.suppress(OSError):
        if os.environ.get("LEAKCHECK_DEBUG") == "1":
            traceback.print_exc()
    notify(message)
    return code
