"""Check that a file system responds, before this process waits for it."""

import sys
from pathlib import Path

from leakcheck import _native
from leakcheck.errors import UsageError

_PATIENCE = 5.0  # seconds


def answering(text: str) -> Path:
    """Return `text` as a path; raise `UsageError` if its directory's file system does not respond within 5 s.

    Local file systems are not checked. Others are checked by a child process, which can be abandoned: even SIGKILL does
    not end a process that waits for FUSE.
    """
    path = Path(text)
    if _native.path_class(str(path.parent)) == "hidden":
        import subprocess

        code = "import os, sys; os.path.exists(sys.argv[1])"
        null = subprocess.DEVNULL
        argv = [sys.executable, "-I", "-S", "-c", code, str(path)]
        asking = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
        try:
            asking.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            asking.kill()
            raise UsageError(f"write {path}: its file system does not respond") from None
    return path
