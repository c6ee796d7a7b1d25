"""Every exception and warning of leakcheck; all errors have one base. It imports nothing of the package."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leakcheck.report import Report


class LeakcheckError(Exception):
    """The base of all errors that leakcheck raises."""


class NativeError(LeakcheckError):
    """The machine refused something that the observation needs."""


class UsageError(NativeError):
    """Wrong input: option, kind, scope, adapter, saved file. The message says what is wrong, where, and what to do."""


class TargetError(LeakcheckError):
    """The command or the target could not be run at all; exit code 4."""


class ArenaError(TargetError):
    """An arena could not be brought up or removed. The message names the failed step; nothing of the arena is left."""


class NotApplicableError(LeakcheckError):
    """The target has nothing of the kind that a campaign tests; exit code 3, never a pass."""


class UnavailableError(LeakcheckError):
    """This machine, or this user, cannot do what a trial needs: nothing is known of the target; exit code 3."""


class StoppedError(TargetError):
    """The user interrupted before there was any result."""


class LateError(TargetError):
    """A command did not end within its limit plus grace, and was killed: its residue is not caused by it alone."""


class CompileError(LeakcheckError):
    """A suite could not be compiled; the message names the suite and the compiler, and quotes the compiler's output."""


class _ReportError(LeakcheckError):
    def __init__(self, message: str, report: "Report") -> None:
        super().__init__(message)
        self.report = report


class LeakError(_ReportError, AssertionError):
    """The run left something behind. The message lists it; `report` holds everything."""


class CoverageError(_ReportError):
    """The verdict is unknown: something requested could not be observed. `report` holds what and why."""


class LeakcheckWarning(UserWarning):
    """Something could not be observed, or an allow rule matched nothing."""


class GivenUp(BaseException):
    """A signal ends us at once, such as a second SIGINT.

    Not an `Exception`, so that no handler treats it as a failed check.
    """


def reason(error: OSError) -> str:
    """Return why a call of the system failed, without its number and path, in lower case."""
    return (error.strerror or str(error)).lower()
