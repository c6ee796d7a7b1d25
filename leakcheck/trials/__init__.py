"""How one trial is made: a host, a session of the target's commands in it, and what became of what was left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leakcheck.targets import Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.host import Host
from leakcheck.trials.live_host import LiveHost

__all__ = ["open_host"]


def open_host(
    target: Target, settle: float, *, live: bool, needed: Sequence[Path] = (), options: Mapping[str, Any] | None = None
) -> Host:
    """Return a host for a trial of `target`: an arena, or with `live` the machine itself.

    Args:
        target: what is to run there.
        settle: seconds that asynchronous teardown may take.
        live: whether it is the machine itself.
        needed: paths of the machine that an arena must show besides.
        options: more of those that `leakcheck.arena.Arena` takes.
    """
    return LiveHost(target, settle) if live else ArenaHost(target, settle, needed, **(options or {}))
