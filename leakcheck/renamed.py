"""Old words of adapters, options and results: they are still read, with a warning that names the new one."""

import warnings
from collections.abc import Mapping
from typing import Any

from leakcheck.errors import UsageError

__all__ = ["RenamedWarning", "notify_renamed", "with_new_names"]


class RenamedWarning(FutureWarning):
    """An old word was read; it will not be for ever."""


def notify_renamed(where: str, old: str, new: str) -> None:
    """Warn that `old` is called `new` now; `where` names the file or command."""
    warnings.warn(f"{where}: {old} is called {new} now", RenamedWarning, stacklevel=2)


def with_new_names(table: dict[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return `table` with its keys as they are called now, by `names` (old → new).

    Raises:
        UsageError: a key is there under both names.
    """
    for old, new in names.items():
        if old in table:
            if new in table:
                raise UsageError(f"{where}: {old} is called {new} now; give one of the two")
            notify_renamed(where, old, new)
    return {names.get(key, key): value for key, value in table.items()}
