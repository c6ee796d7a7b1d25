"""Old names in adapters, options and results: they are still read, with a warning that gives the new name."""

import warnings
from collections.abc import Mapping
from typing import Any

from leakcheck.errors import UsageError


class RenamedWarning(FutureWarning):
    """An old name was read; support for it will end."""


def notify_renamed(where: str, old: str, new: str) -> None:
    """Warn that `old` is now called `new`; `where` names the file or command."""
    warnings.warn(f"{where}: {old} is now called {new}", RenamedWarning, stacklevel=2)


def with_new_names(table: dict[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return `table` with its keys renamed by `names` (old → new); raise `UsageError` if it has both names of a key."""
    for old, new in names.items():
        if old in table:
            if new in table:
                raise UsageError(f"{where}: {old} is now called {new}; give one of the two")
            notify_renamed(where, old, new)
    return {names.get(key, key): value for key, value in table.items()}
