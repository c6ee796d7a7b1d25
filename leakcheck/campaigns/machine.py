"""The machine around a whole campaign: its settings, and on the live host everything that the campaign leaves.

No namespace isolates the settings, so with parallel trials no single trial can be blamed for a change.
"""

from collections.abc import Iterator

import msgspec

from leakcheck import _native
from leakcheck.campaigns.findings import residue
from leakcheck.campaigns.result import Criterion, Residue
from leakcheck.report import Leak, Report, Verdict
from leakcheck.trials.remnant import Remnant


class Machine:
    """The machine, observed from construction on; with `live` also everything left on it, for `leakcheck reap`.

    If the campaign was cut off, `settings` are those of its begin, and `changed` has those that it was known to change:
    what its trials did to the machine before counts as well, also if the machine was restarted since.
    """

    def __init__(self, *, live: bool, settings: str = "", changed: str = "") -> None:
        self._guard = _native.Guard(settle_ms=500, attributed_only=True) if live else None
        self._before = _native.snapshot(kinds="sysctl")
        if settings and (first := _native.Snapshot.from_json(settings)).boot_id == self._before.boot_id:
            self._before = first
        self._known = msgspec.json.decode(changed or "[]", type=list[Leak])
        self.untied: list[Residue] = []
        self.gaps: dict[str, str] = {}

    def close(self) -> None:
        """End the observation."""
        if self._guard is not None:
            self._guard.abandon()

    def judge(self) -> Iterator[tuple[Criterion, Verdict]]:
        """Yield the criterion for the settings; the author of a change is unknown, but the result is not *clean*."""
        report = self._compared()
        self.gaps = {kind: gap.reason for kind, gap in report.gaps.items()}
        found = self._all(report)
        if found:
            self.untied = residue([[Remnant.of(leak, "damaged") for leak in found]])
        name = "settings of the machine that changed"
        yield Criterion(name=name, passed=not found, measured=len(found), limit=0), "leaked"

    def settings(self) -> str:
        """Return the settings before the first trial, as JSON."""
        return self._before.to_json()

    def changed(self) -> str:
        """Return the settings that have changed so far, as JSON."""
        return msgspec.json.encode(self._all(self._compared())).decode()

    def _compared(self) -> Report:
        return Report.from_json(_native.diff(self._before, _native.snapshot(kinds="sysctl")))

    def _all(self, report: Report) -> list[Leak]:
        now = {leak.label for leak in report.leaks}
        return [*(leak for leak in self._known if leak.label not in now), *report.leaks]

    def report(self) -> msgspec.Raw:
        """Return the report of everything left on the live host; null if the trials did not run there."""
        return msgspec.Raw(b"null" if self._guard is None else self._guard.end().encode())
