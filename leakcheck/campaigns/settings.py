"""The machine's settings, looked at once around a whole campaign.

No namespace isolates them, so that of two trials side by side neither can be told from the other by what is set.
"""

import msgspec

from leakcheck import _native
from leakcheck.campaigns.result import Campaign, Criterion, Residue
from leakcheck.campaigns.summary import shape
from leakcheck.report import Report

__all__ = ["Settings"]

_LABELS = 8


class Settings:
    """What was set when this was made."""

    def __init__(self) -> None:
        self._before = _native.snapshot(kinds="sysctl")

    def judge(self, campaign: Campaign) -> Campaign:
        """Return the campaign with what is set differently now; who did that cannot be told, but it is no *clean*."""
        report = Report.from_json(_native.diff(self._before, _native.snapshot(kinds="sysctl")))
        changed = len(report.leaks)
        name = "settings of the machine that changed"
        criterion = Criterion(name=name, passed=changed == 0, measured=changed, limit=0)
        verdict = campaign.verdict
        if changed:
            verdict = "leaked"
        elif report.gaps and verdict == "clean":
            verdict = "unknown"
        labels = list({shape(leak.label): leak.label for leak in report.leaks}.values())[:_LABELS]
        residue = [Residue(kind="sysctl", class_="damaged", labels=labels, count=changed)] if changed else []
        return msgspec.structs.replace(
            campaign,
            verdict=verdict,
            criteria=[*campaign.criteria, criterion],
            untied=[*campaign.untied, *residue],
            coverage=campaign.coverage | {kind: gap.reason for kind, gap in report.gaps.items()},
        )
