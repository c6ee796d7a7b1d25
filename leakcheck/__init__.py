"""Proves that a Linux sandbox leaves nothing behind.

Put `guard` around some code, or `snapshot` before it and `verify_none` after it; `diff` compares two saved snapshots.
An `Arena` is a disposable host to run something in; both can observe it.
Nothing is reported *clean* that was not observed: a gap raises `CoverageError`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from leakcheck._guard import Guard, guard
    from leakcheck._native import DEFAULT_ROOTS, KINDS, Snapshot, __version__
    from leakcheck.allow import AllowRule
    from leakcheck.arena import Arena
    from leakcheck.errors import (
        ArenaError,
        CoverageError,
        LeakcheckError,
        LeakcheckWarning,
        LeakError,
        NativeError,
        TargetError,
        UsageError,
    )
    from leakcheck.report import Coverage, Leak, Report
    from leakcheck.snapshots import diff, snapshot, verify_none
else:
    # Each name is imported when it is first used: the command starts here too and must handle Ctrl-C at once.
    # Names that are not listed here are in `errors`.
    _OF = {
        "_native": ["DEFAULT_ROOTS", "KINDS", "Snapshot", "__version__"],
        "allow": ["AllowRule"],
        "arena": ["Arena"],
        "_guard": ["Guard", "guard"],
        "report": ["Coverage", "Leak", "Report"],
        "snapshots": ["diff", "snapshot", "verify_none"],
    }

    def __getattr__(name):
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = next((module for module, names in _OF.items() if name in names), "errors")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "DEFAULT_ROOTS",
    "KINDS",
    "AllowRule",
    "Arena",
    "ArenaError",
    "Coverage",
    "CoverageError",
    "Guard",
    "Leak",
    "LeakError",
    "LeakcheckError",
    "LeakcheckWarning",
    "NativeError",
    "Report",
    "Snapshot",
    "TargetError",
    "UsageError",
    "__version__",
    "diff",
    "guard",
    "snapshot",
    "verify_none",
]
