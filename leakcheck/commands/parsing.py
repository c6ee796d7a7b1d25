"""Options of the command line that need more than typer to be understood."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakcheck.errors import UsageError

if TYPE_CHECKING:
    from leakcheck.arena import Arena


def observed(scope: str, kinds: str | None, roots: list[str] | None, lock_files: list[str] | None) -> dict[str, Any]:
    """Return the options of an observation, for the native core."""
    from leakcheck._guard import existing_roots

    return {
        "scope": scope,
        "kinds": kinds,
        "roots": None if roots is None else existing_roots(paths_of(roots, "--roots"), "--roots"),
        "lock_files": paths_of(lock_files or [], "--lock-files"),
    }


def arena_of(size: str | None, network: str, binds: list[str], limits: list[str], *, keep: bool) -> "Arena":
    """Return the arena that these options describe."""
    from leakcheck.arena import Arena

    if wrong := [text for text in limits if not text.partition("=")[2]]:
        raise UsageError(f"--limit {wrong[0]!r}: give FILE=VALUE, such as pids.max=100")
    found = re.fullmatch(r"(\d+)([KMG]?)", "0" if size is None else size)
    if found is None:
        raise UsageError(f"--size {size!r}: give a number of bytes, such as 1048576, 64M or 1G")
    return Arena(
        size=None if size is None else int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]],
        network=network,
        binds=[_bind(text) for text in binds],
        limits=dict(text.split("=", 1) for text in limits),
        keep=keep,
    )


def _bind(text: str) -> tuple[str, str, bool]:
    source, *rest = text.split(":")
    read_only = rest[-1:] == ["ro"]
    target = rest[: len(rest) - read_only] or [str(Path(source).absolute())]
    if not source or len(target) != 1 or not target[0].startswith("/"):
        raise UsageError(f"--bind {text!r}: give SRC, SRC:DST or SRC:DST:ro, with an absolute DST")
    return source, target[0], read_only


def paths_of(given: list[str], option: str) -> list[str]:
    """Return the paths of the lists of paths that `option` was given."""
    paths = [str(Path(path).absolute()) for several in given for path in several.split(",") if path]
    if given and not paths:
        raise UsageError(f"{option} {','.join(given)!r}: names no path")
    return paths


def words_of(text: str) -> list[str]:
    """Return the words of a list; raise a `UsageError` if there is none."""
    if not (words := [word for word in text.split(",") if word]):
        raise UsageError(f"{text!r}: names nothing; omit the option")
    return words
