"""The command: ``leakcheck`` and ``python -m leakcheck``.

This module imports nothing slow, so that Ctrl-C exits without a traceback from the start.
"""

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    if os.getpid() == 1:
        from leakcheck.init import as_init

        as_init()
    try:
        from leakcheck.cli import main as command
    except (ImportError, MemoryError, OSError) as error:
        if os.environ.get("LEAKCHECK_DEBUG") == "1":
            raise
        sys.exit(_unable(error))
    command()


def _unable(error: Exception) -> int:
    import contextlib

    why = " ".join(str(error).split()) or "out of memory"
    with contextlib.suppress(OSError):
        os.write(2, f"leakcheck: unknown: cannot start: {why}\n".encode("utf-8", "backslashreplace"))
    return 3


def _leave(_number: int, _frame: "FrameType | None") -> "NoReturn":
    try:
        os.write(2, b"leakcheck: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()
