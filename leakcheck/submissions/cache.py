"""The compile cache: compiled suites, keyed by the content that they were compiled from."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from leakcheck.errors import CompileError, UsageError, reason

_PLAIN = re.compile(r"/[\w/.+@-]*", re.ASCII)
_FOR_ROOT = "/var/cache"
_MANIFEST = "manifest.json"
_COMPILE_S = 300


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of compiled submissions: ``leakcheck/submissions`` below the user's cache directory.

    That is ``$XDG_CACHE_HOME``. If it is not set: ``/var/cache`` for root, because a payload of another user cannot
    traverse ``/root``, and ``~/.cache`` for others. It need not exist yet. An arena replaces /tmp, /run, /var/tmp and
    /dev/shm: a cache below these must be bound into it.

    Raises:
        UsageError: there is no such directory, or its path has characters that are special to some sandbox's options.
    """
    base = environment.get("XDG_CACHE_HOME", "")
    # Relative paths must be ignored (XDG Base Directory Specification).
    if not base.startswith("/"):
        if os.geteuid() == 0:
            base = _FOR_ROOT
        elif environment.get("HOME", "").startswith("/"):
            base = f"{environment['HOME']}/.cache"
        else:
            why = "HOME is not set; set XDG_CACHE_HOME to a directory"
            raise UsageError(f"no directory for compiled submissions: {why}")
    if not _PLAIN.fullmatch(base):
        why = "a path to bind may have only letters, digits and /.+@_- in sandboxes"
        raise UsageError(f"cache directory {base!r}: {why}; set XDG_CACHE_HOME to another directory")
    return Path(os.path.normpath(base)) / "leakcheck/submissions"


def compiled(name: str, content: Sequence[bytes], build: Callable[[Path], None], cache: Path | None = None) -> Path:
    """Return the directory that `build` filled once for `content`; everything in it is readable for all users.

    `content` is what it depends on: sources, flags, the compiler's version. `name` is the prefix of its name in
    `cache`, by default `cache_directory`.

    Raises:
        CompileError: `build` raised it; nothing is kept.
        UsageError: the cache cannot be written; the message says why and what to set.
    """
    cache = cache_directory() if cache is None else cache
    digest = hashlib.sha256()
    for part in content:
        digest.update(len(part).to_bytes(8, "little") + part)
    entry = cache / f"{name}-{digest.hexdigest()[:20]}"
    # Checked before any write: a complete cache may be read-only.
    if _intact(entry):
        return entry
    try:
        _make_directory(cache)
        # The file is never unlinked: otherwise two processes could hold the lock (flock(2)).
        lock = os.open(cache / f"{entry.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(lock, "r+"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _intact(entry):
                _make(entry, build)
    except OSError as error:
        what = f"{reason(error)}: {error.filename or entry}"
        raise UsageError(f"keep compiled submissions in {cache}: {what}; set XDG_CACHE_HOME elsewhere") from error
    return entry


def run_compiler(
    argv: Sequence[str], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run one compile command in `directory`; return its output, or raise `CompileError` with it if it fails."""
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMPILE_S,
        )
    except OSError as error:
        raise CompileError(f"run {argv[0]}: {reason(error)}") from error
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{' '.join(argv)}: still ran after {_COMPILE_S} s") from error
    if done.returncode != 0:
        raise CompileError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout.strip()[-4000:]}")
    return done.stdout


def _make_directory(directory: Path) -> None:
    """Create it and its parents, accessible to payloads of other users whatever the umask."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        # Another process may create it at the same time.
        one.mkdir(exist_ok=True)
        one.chmod(0o755)


def _make(entry: Path, build: Callable[[Path], None]) -> None:
    """Build beside `entry` and rename it there; with the lock held, leftovers of others belong to dead processes."""
    unfinished = entry.with_name(f"{entry.name}.unfinished")
    broken = entry.with_name(f"{entry.name}.broken")
    for leftover in (unfinished, broken):
        if leftover.exists():
            shutil.rmtree(leftover)
    unfinished.mkdir()
    try:
        build(unfinished)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
        (unfinished / _MANIFEST).write_text(json.dumps(_listed(unfinished)))
        (unfinished / _MANIFEST).chmod(0o644)
        if entry.exists():
            entry.rename(broken)
        unfinished.rename(entry)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if broken.exists():
        shutil.rmtree(broken)


def _intact(entry: Path) -> bool:
    """Return whether everything that was built exists with its size and mode."""
    try:
        return bool(json.loads((entry / _MANIFEST).read_bytes()) == _listed(entry))
    except (OSError, ValueError):
        return False


def _listed(entry: Path) -> dict[str, list[int]]:
    found = {}
    for path in sorted(entry.rglob("*")):
        if path.name != _MANIFEST and not path.is_dir():
            status = path.lstat()
            found[str(path.relative_to(entry))] = [status.st_size, stat.S_IMODE(status.st_mode)]
    return found
