"""How one trial is made: a host, a session of the target's commands in it, and the later fate of the residue."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leakcheck.targets import Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.host import Host
from leakcheck.trials.live_host import LiveHost


def open_host(
    target: Target, settle: float, *, live: bool, needed: Sequence[Path] = (), options: Mapping[str, Any] | None = None
) -> Host:
    """Return a host for a trial of `target`: an arena, or with `live` the live host.

    Args:
        target: the target to run there.
        settle: seconds that asynchronous teardown may take.
        live: whether to use the live host.
        needed: additional paths of the live host that an arena must show.
        options: more options of `leakcheck.arena.Arena`.
    """
    return LiveHost(target, settle) if live else ArenaHost(target, settle, needed, **(options or {}))
