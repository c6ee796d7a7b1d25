"""The commands of `leakcheck`; each returns its exit code. `leakcheck.cli` parses the command line."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from leakcheck.report import Verdict

CLEAN, LEAKED, USAGE, UNKNOWN, TARGET, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_OF: "dict[Verdict, int]" = {"clean": CLEAN, "leaked": LEAKED, "unknown": UNKNOWN}
