"""The built-in targets, and lookup of a target by name or path."""

import os
from pathlib import Path

from leakcheck.errors import UsageError
from leakcheck.targets.target import Target

_ADAPTERS = Path(__file__).parent / "adapters"


def builtin() -> list[Target]:
    """Return the built-in targets by name."""
    return [Target(_ADAPTERS / f"{name}.toml") for name in names()]


def is_builtin(target: Target) -> bool:
    """Whether `load` finds the target by its name."""
    return target.path.parent == _ADAPTERS


def names() -> list[str]:
    """Return the names of the built-in targets."""
    return sorted(path.stem for path in _ADAPTERS.glob("*.toml"))


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
        raise UsageError(f"unknown target {given!r}: one of {', '.join(names())}, or the path of an adapter (.toml)")
    return Target(path)
