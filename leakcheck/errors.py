"""Every exception and warning of leakcheck; all errors have one base. It imports nothing of the package."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leakcheck.report import Report

__all__ = [
    "ArenaError",
    "CompileError",
    "CoverageError",
    "GivenUp",
    "LateError",
    "LeakError",
    "LeakcheckError",
    "LeakcheckWarning",
    "NativeError",
    "StoppedError",
    "TargetError",
    "UsageError",
]


class LeakcheckError(Exception):
    """The base of all errors that leakcheck raises."""


class NativeError(LeakcheckError):
    """The machine refused something that the observation cannot do without."""


class UsageError(NativeError):
    """The input is at fault: option, kind, scope, adapter, saved file. The message says what, where and what to do."""


class TargetError(LeakcheckError):
    """The command or the target could not be run at all; exit code 4."""


class ArenaError(TargetError):
    """An arena could not be brought up or taken away; the message says at which step, and nothing is left of it."""


class StoppedError(TargetError):
    """Somebody wanted to end before there was anything to tell."""


class LateError(TargetError):
    """A command did not end by its limit and the grace, and was ended: what it leaves is not its own doing alone."""


class CompileError(LeakcheckError):
    """A suite could not be compiled; the message says which, with what, and the compiler's own words."""


class _ReportError(LeakcheckError):
    def __init__(self, message: str, report: "Report") -> None:
        super().__init__(message)
        self.report = report


class LeakError(_ReportError, AssertionError):
    """The run left something behind. The message lists it; `report` holds everything."""


class CoverageError(_ReportError):
    """The verdict is unknown: something that was asked for could not be looked at. `report` tells what and why."""


class LeakcheckWarning(UserWarning):
    """Something could not be looked at, or an allow rule matched nothing."""


class GivenUp(BaseException):
    """A second SIGINT: leave at once. No `Exception`, so that nothing takes it for a failure of the check."""
