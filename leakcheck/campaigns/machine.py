"""The machine around a whole campaign: its settings, and on the live host everything that the campaign leaves.

No namespace isolates the settings, so with parallel trials no single trial can be blamed for a change.
"""

from collections.abc import Iterator

import msgspec

from leakcheck import _native
from leakcheck.campaigns.findings import residue
from leakcheck.campaigns.result import Criterion, Residue
from leakcheck.report import Report, Verdict
from leakcheck.trials.remnant import Remnant


class Machine:
    """The machine, observed from construction on; with `live` also everything left on it, for `leakcheck reap`."""

    def __init__(self, *, live: bool) -> None:
        self._guard = _native.Guard(settle_ms=500, attributed_only=True) if live else None
        self._before = _native.snapshot(kinds="sysctl")
        self.untied: list[Residue] = []
        self.gaps: dict[str, str] = {}

    def close(self) -> None:
        """End the observation."""
        if self._guard is not None:
            self._guard.abandon()

    def judge(self) -> Iterator[tuple[Criterion, Verdict]]:
        """Yield the criterion for the settings; the author of a change is unknown, but the result is not *clean*."""
        report = Report.from_json(_native.diff(self._before, _native.snapshot(kinds="sysctl")))
        self.gaps = {kind: gap.reason for kind, gap in report.gaps.items()}
        if changed := len(report.leaks):
            self.untied = residue([[Remnant.of(leak, "damaged") for leak in report.leaks]])
        name = "settings of the machine that changed"
        yield Criterion(name=name, passed=changed == 0, measured=changed, limit=0), "leaked"

    def report(self) -> msgspec.Raw:
        """Return the report of everything left on the live host; null if the trials did not run there."""
        return msgspec.Raw(b"null" if self._guard is None else self._guard.end().encode())
