"""How one trial is made: a host, a session of the target's commands in it, and the later fate of the residue."""

from collections.abc import Mapping
from typing import Any

from leakcheck.errors import UsageError
from leakcheck.targets import Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.host import Host
from leakcheck.trials.live_host import LiveHost


def open_host(target: Target, settle: float, *, live: bool, options: Mapping[str, Any] | None = None) -> Host:
    """Return a host for a trial of `target`, whose asynchronous teardown may take `settle` seconds.

    It is the live host, or an arena with more `options` of `leakcheck.arena.Arena`. It raises `UsageError` if an
    adapter refuses the live host.
    """
    if live and target.adapter.arena_only:
        raise UsageError(f"--host: {target.name} runs in arenas only, as arena_only in {target.path} says; omit --host")
    return LiveHost(settle) if live else ArenaHost(target, settle, **(options or {}))
