"""The report files of a suite: ``--leakcheck-report FILE``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from leakcheck.answers import answering

if TYPE_CHECKING:
    from leakcheck.reports.files import Reports
    from leakcheck.reports.of_session import Guarded

_FAILED = 1
"""The exit status of a suite whose tests all ran, but did not all pass."""


class SessionReports:
    """Collects what the tests left, and writes it at the end, in the process that has the terminal.

    The files are opened when the session is configured; it raises `UsageError` if one cannot be written.
    """

    def __init__(self, config: pytest.Config) -> None:
        paths: Sequence[str] = config.getoption("leakcheck_report")
        self._suite = config.rootpath.name
        self._tests: dict[str, Guarded] = {}
        self._files: Reports | None = None
        if paths:
            # No suite without such reports waits for their formats.
            from leakcheck.reports import files

            self._files = files.Reports([answering(path) for path in paths], github=False)

    def note(self, report: pytest.TestReport, data: Mapping[str, Any] | None) -> None:
        """Collect one phase of a test; `data` is what its guard found, None if there is nothing of it."""
        if self._files is None:
            return
        from leakcheck.reports.of_session import Guarded, Left

        test = self._tests.setdefault(report.nodeid, Guarded(nodeid=report.nodeid))
        test.seconds += report.duration
        if data is None:
            test.failed |= report.failed
            return
        test.guarded = True
        test.failed |= report.failed and not data["leaked"]
        made = data["made_at"]
        test.left += [Left(made[key][0], line, made[key][1]) for key, line in data["leaks"].items() if line]
        test.unknown += data["unknown"]

    def write(self, status: int, unattributed: Sequence[str]) -> int:
        """Write the reports, if any; return the exit status, which is not 0 if one could not be written."""
        if self._files is None:
            return status
        from leakcheck.reports.of_session import of_session

        tests = [*self._tests.values()]
        unfinished = "" if status in (0, _FAILED) else f"pytest ended with {status!s}"
        return self._files.write(status, lambda: of_session(self._suite, tests, unattributed, unfinished))

    def close(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()
