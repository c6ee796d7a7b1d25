"""Ask whether a file system answers, before anything of ours waits for it."""

import subprocess
import sys
from pathlib import Path

from leakcheck import _native
from leakcheck.errors import UsageError

__all__ = ["answering"]

_PATIENCE = 5.0  # seconds


def answering(text: str) -> Path:
    """Return `text` as a path; raise `UsageError` if its directory is in a file system that does not answer within 5 s.

    A local file system is not asked. The server of another one is asked by a process that can be given up: who waits
    for FUSE is not even ended by SIGKILL.
    """
    path = Path(text)
    if _native.path_class(str(path.parent)) == "hidden":
        code = "import os, sys; os.path.exists(sys.argv[1])"
        null = subprocess.DEVNULL
        argv = [sys.executable, "-I", "-S", "-c", code, str(path)]
        asking = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
        try:
            asking.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            asking.kill()
            raise UsageError(f"write {path}: its file system does not answer") from None
    return path
