"""The compile cache: what a language's suite was compiled to, by the content that it was compiled from."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from leakcheck.errors import CompileError, UsageError

__all__ = ["cache_directory", "compiled", "run_compiler"]

_PLAIN = re.compile(r"/[\w/.+@-]*", re.ASCII)
_FOR_ROOT = "/var/cache"
_MANIFEST = "manifest.json"
_COMPILE_S = 300


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where compiled submissions are kept: ``leakcheck/submissions`` below the user's cache directory.

    That is ``$XDG_CACHE_HOME``; where it is not set, ``/var/cache`` for root, as a payload of another user has no way
    through ``/root``, and ``~/.cache`` for others. It need not be there yet. An arena replaces /tmp, /run,
    /var/tmp and /dev/shm: what is kept below these has to be bound into it.

    Raises:
        UsageError: there is no such place, or its path has characters that some sandbox's command line gives a meaning.
    """
    base = environment.get("XDG_CACHE_HOME", "")
    # What is relative is to be ignored (XDG Base Directory Specification).
    if not base.startswith("/"):
        if os.geteuid() == 0:
            base = _FOR_ROOT
        elif environment.get("HOME", "").startswith("/"):
            base = f"{environment['HOME']}/.cache"
        else:
            raise UsageError("no place for compiled submissions: HOME is not set; set XDG_CACHE_HOME to a directory")
    if not _PLAIN.fullmatch(base):
        raise UsageError(
            f"cache directory {base!r}: sandboxes take only letters, digits and /.+@_- in a path to bind; "
            "set XDG_CACHE_HOME to another directory"
        )
    return Path(os.path.normpath(base)) / "leakcheck/submissions"


def compiled(name: str, content: Sequence[bytes], build: Callable[[Path], None], cache: Path | None = None) -> Path:
    """Return the directory that `build` filled once for `content`, everything in it readable for all.

    Args:
        name: what the directory's name begins with.
        content: what it depends on: sources, flags, the compiler's version.
        build: fills the directory that it is given.
        cache: where to keep it; `cache_directory` where not given.

    Raises:
        CompileError: `build` raised it; nothing is kept.
        UsageError: nothing can be written there; says why and what to set.
    """
    cache = cache_directory() if cache is None else cache
    digest = hashlib.sha256()
    for part in content:
        digest.update(len(part).to_bytes(8, "little") + part)
    entry = cache / f"{name}-{digest.hexdigest()[:20]}"
    # Looked at before anything is written: a full cache may be read-only.
    if _intact(entry):
        return entry
    try:
        _make_directory(cache)
        with _locked(cache / f"{entry.name}.lock"):
            if not _intact(entry):
                _make(entry, build)
    except OSError as error:
        what = f"{(error.strerror or str(error)).lower()}: {error.filename or entry}"
        raise UsageError(f"keep compiled submissions in {cache}: {what}; set XDG_CACHE_HOME elsewhere") from error
    return entry


def run_compiler(
    argv: Sequence[str], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run one command of a compilation in `directory`; return its words, raise `CompileError` with them if it fails."""
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env=None if environment is None else {**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMPILE_S,
            check=False,
        )
    except OSError as error:
        raise CompileError(f"run {argv[0]}: {(error.strerror or str(error)).lower()}") from error
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{' '.join(argv)}: still ran after {_COMPILE_S} s") from error
    if done.returncode != 0:
        raise CompileError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout.strip()[-4000:]}")
    return done.stdout


def _make_directory(directory: Path) -> None:
    """Make it and what it is in, all of it open to payloads that run as somebody else, whatever the umask."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        # Somebody may make it meanwhile.
        one.mkdir(exist_ok=True)
        one.chmod(0o755)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold the lock at `path`. It stays there: unlinked, two could hold it (flock(2))."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _make(entry: Path, build: Callable[[Path], None]) -> None:
    """Build beside `entry` and put it there at once; with the lock held, what is left of others is of the dead."""
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
    """Tell whether all that was built is there, in its size and mode."""
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
