"""What leakcheck raises. `UsageError` and `NativeError` come from the native core and are defined there."""

from leakcheck._native import NativeError, UsageError
from leakcheck.render import summary
from leakcheck.report import Report

__all__ = ["CoverageError", "LeakError", "NativeError", "UsageError"]


class LeakError(AssertionError):
    """The run left something behind. The message lists it; `report` holds everything."""

    def __init__(self, report: Report) -> None:
        super().__init__(summary(report))
        self.report = report


class CoverageError(Exception):
    """The verdict is unknown: something that was asked for could not be looked at. `report` tells what and why."""

    def __init__(self, report: Report) -> None:
        super().__init__(summary(report))
        self.report = report
