"""The built-in targets, and lookup of a target by name or path."""

import os
from pathlib import Path

from leakcheck.errors import UsageError
from leakcheck.targets.target import Target

_ADAPTERS = Path(__file__).parent / "adapters"


def builtin() -> list[Target]:
    """Return the built-in targets by name."""
    return [Target(path) for path in sorted(_ADAPTERS.glob("*.toml"), key=lambda path: path.stem)]


def load(name_or_path: str | os.PathLike[str]) -> Target:
    """Return the built-in target of that name, or the one described by the TOML file at that path.

    Raises:
        UsageError: unknown target, missing file, or wrong adapter.
    """
    given = os.fspath(name_or_path)
    if os.sep in given or given.endswith(".toml"):
        return Target(Path(given))
    path = _ADAPTERS / f"{given}.toml"
    if not path.is_file():
        names = ", ".join(sorted(known.stem for known in _ADAPTERS.glob("*.toml")))
        raise UsageError(f"unknown target {given!r}: one of {names}, or the path of an adapter (.toml)")
    return Target(path)
