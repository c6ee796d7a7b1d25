"""Observe, compare, and verify that nothing is left since an observation."""

import gc
import os
from collections.abc import Sequence

from leakcheck import _native
from leakcheck._guard import InArena, Kinds, OnUnknown, enforce, existing_roots, kinds_text, milliseconds, view_of
from leakcheck._native import Snapshot
from leakcheck.allow import Allow, to_toml
from leakcheck.report import Report

__all__ = ["diff", "snapshot", "verify_none"]


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
    """Observe once; the GIL is released meanwhile.

    Args:
        scope: ``"host"``, ``"cgroup:PATH"`` or ``"tree:PID"``.
        kinds: what to look at; None is every kind that the scope can delimit.
        roots: directories whose files count; None is `DEFAULT_ROOTS`.
        lock_files: paths at which lock files are expected.
        threads: how many threads read /proc; 0 chooses by the number of CPUs.
        include_self: whether this process's own descriptors count; in an arena they do not.
        arena: the disposable host to look at, all of it, instead of `scope` and `roots`.

    Raises:
        UsageError: unknown kind or scope, dead process, missing cgroup or root.
        NativeError: the machine refused something that the observation cannot do without.
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
    """Compare two snapshots of one boot by identity; pure, nothing settles.

    Raises:
        UsageError: the snapshots are of different boots, scopes or kinds, or an allow rule is wrong.
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
    """Verify that nothing is there that `since` had not; return the report if so.

    Garbage is collected first, then the residue has `settle` seconds (0 to 3600) to go away. Without a guard around it
    nothing is known of who made what, so on a busy machine name the kinds or the scope in `snapshot`. `include_self`
    must be as it was there.

    Raises:
        LeakError: something is left; its message lists it.
        CoverageError: not everything could be looked at, unless `on_unknown` is ``"warn"`` or ``"ignore"``.
        UsageError, NativeError: as `snapshot` and `diff` do.
    """
    gc.collect()
    text = _native.settle(since, allow=to_toml(allow), settle_ms=milliseconds(settle), include_self=include_self)
    return enforce(Report.from_json(text), on_unknown)
