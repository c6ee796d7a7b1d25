"""Take snapshots, compare them, and verify that nothing is left since a snapshot."""

import gc
import os
from collections.abc import Sequence

from leakcheck import _native
from leakcheck._guard import InArena, Kinds, OnUnknown, enforce, existing_roots, kinds_text, milliseconds, view_of
from leakcheck._native import Snapshot
from leakcheck.allow import Allow, to_toml
from leakcheck.report import Report


def snapshot(
    *,
    scope: str = "host",
    kinds: Kinds = None,
    roots: Sequence[str | os.PathLike[str]] | None = None,
    lock_files: Sequence[str | os.PathLike[str]] = (),
    threads: int = 0,
    include_self: bool = True,
    arena: InArena | None = None,
) -> Snapshot:
    """Take a snapshot; the GIL is released while it runs.

    The options are those of `leakcheck.guard`. `threads` is the number of threads that read /proc; 0 chooses by the
    number of CPUs. `include_self` is whether to include this process's own descriptors; in an arena they never are.

    Raises:
        UsageError: unknown kind or scope, dead process, missing cgroup or root.
        NativeError: the machine refused something that the observation needs.
    """
    return _native.snapshot(
        scope=scope,
        kinds=kinds_text(kinds),
        roots=None if roots is None else existing_roots([os.fspath(root) for root in roots]),
        lock_files=[os.fspath(path) for path in lock_files],
        threads=threads,
        include_self=include_self,
        arena=view_of(arena),
    )


def diff(before: Snapshot, after: Snapshot, *, allow: Allow = None) -> Report:
    """Compare two snapshots of one boot by identity; pure, without settling.

    Raises:
        UsageError: the snapshots have different boots, scopes or kinds, or an allow rule is wrong.
    """
    return Report.from_json(_native.diff(before, after, allow=to_toml(allow)))


def verify_none(
    since: Snapshot,
    *,
    allow: Allow = None,
    settle: float = 0.5,
    on_unknown: OnUnknown = "raise",
    include_self: bool = True,
) -> Report:
    """Verify that nothing exists now that is not in `since`; return the report if so.

    Garbage is collected first; then the residue has `settle` seconds (0 to 3600) to go away. Without a guard, nothing
    is known about who made what, so on a busy machine restrict the kinds or the scope in `snapshot`. `include_self`
    must be the same as in `since`.

    Raises:
        LeakError: something is left; its message lists it.
        CoverageError: not everything could be observed, unless `on_unknown` is ``"warn"`` or ``"ignore"``.
        UsageError, NativeError: as `snapshot` and `diff` do.
    """
    gc.collect()
    text = _native.settle(since, allow=to_toml(allow), settle_ms=milliseconds(settle), include_self=include_self)
    return enforce(Report.from_json(text), on_unknown)
