"""How the plugin reports: a separate test outcome, a section at the end, a separate type in JUnit XML."""

from collections import Counter
from typing import Any

import pytest

from leakcheck.printable import printable
from leakcheck.pytest_item import ItemGuard, Settings
from leakcheck.pytest_reports import SessionReports
from leakcheck.pytest_rules import NAMES as KEPT_FOR_LIFE
from leakcheck.pytest_rules import OF_TOOLS
from leakcheck.render import count, leak_lines, summary

_LEAKED = "leakcheck: leaked"


def attach(guard: ItemGuard, report: pytest.TestReport) -> None:
    """Attach the findings to `report` as plain data that xdist can send; a passed test's leak is its outcome."""
    found = guard.report
    data: dict[str, Any] = {"leaked": False, "leaks": {}, "unattributed": {}, "unknown": [], "unused": [], "kept": {}}
    data |= {"written": {}, "made_at": {}}
    if guard.failure is not None:
        data["unknown"] = [guard.failure]
    if found is not None:
        data["leaks"] = leak_lines(found.leaks)
        data["made_at"] = {leak.key: [leak.kind, leak.made_at or ""] for leak in found.leaks}
        data["unattributed"] = leak_lines(found.unattributed)
        kept = [allowed for allowed in found.allowed if allowed.reason in KEPT_FOR_LIFE]
        data["kept"] = {allowed.key: [allowed.reason, allowed.label] for allowed in kept}
        # One example of each suffices: a suite has thousands of files in tmp_path.
        data["written"] = {one.reason: one.label for one in found.allowed if one.reason in OF_TOOLS}
        data["unknown"] += [f"{kind}: {gap.level}, {gap.reason}" for kind, gap in found.gaps.items()]
        of_test = {(rule.kind, rule.reason) for rule in guard.rules}
        unused = [(rule.kind, rule.reason) for rule in found.unused_rules if (rule.kind, rule.reason) not in of_test]
        data["unused"] = [list(rule) for rule in unused]
    if guard.report is not None or guard.failure is not None:
        report.leakcheck = data  # type: ignore[attr-defined]
    passed = report.passed and not guard.failed
    if found is not None and found.leaks:
        text = summary(found)
        if passed:
            data["leaked"] = True
            report.outcome, report.longrepr = "failed", text
        else:
            report.sections.append(("leakcheck, seen after teardown", text))
    elif data["unknown"] and passed and guard.settings.unknown_fails:
        report.outcome = "failed"
        report.longrepr = "leakcheck: unknown\n" + "\n".join(printable(why) for why in data["unknown"])


class Summary:
    """Collects the findings in the tests' reports and shows them, in the process that has the terminal."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._leaking: list[tuple[str, bool, list[str]]] = []
        self._blamed: set[str] = set()
        self._unattributed: dict[str, str] = {}
        self._unknown: Counter[str] = Counter()
        self._kept: dict[str, list[str]] = {}
        self._written: dict[str, str] = {}
        self._unused: set[tuple[str, str]] | None = None
        self._reports = SessionReports(config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """Give "passed but leaked" its own category, letter and word."""
        if getattr(report, "leakcheck", {}).get("leaked"):
            return "leaked", "L", ("LEAKED", {"red": True})
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect. A test counts once, so a leaked test no longer counts as passed or skipped."""
        data = getattr(report, "leakcheck", None)
        self._reports.note(report, data)
        if data is None:
            return
        if data["leaks"]:
            self._leaking.append((report.nodeid, data["leaked"], list(filter(None, data["leaks"].values()))))
            self._blamed.update(data["leaks"])
        if data["leaked"]:
            self._uncount(report.nodeid)
        self._unattributed.update(data["unattributed"])
        self._kept.update(data["kept"])
        self._written.update(data["written"])
        self._unknown.update(data["unknown"])
        unused = {(kind, reason) for kind, reason in data["unused"]}
        self._unused = unused if self._unused is None else self._unused & unused

    def _uncount(self, nodeid: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        # Its outcome before the teardown, unless that was "failed".
        for category in ("passed", "skipped", "xfailed", "xpassed"):
            counted = terminal.stats.get(category, [])
            counted[:] = [report for report in counted if report.nodeid != nodeid]
            if not counted:
                terminal.stats.pop(category, None)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show which tests leaked what; once, what no single test can be blamed for; and what was not observed."""
        write = terminalreporter
        if self._leaking:
            write.write_sep("=", f"leakcheck: {count(len(self._leaking), 'test')} left something behind", red=True)
            for nodeid, only_leaked, leaks in self._leaking:
                write.write_line(f"{'LEAKED' if only_leaked else 'FAILED and leaked'} {printable(nodeid)}", red=True)
                for leak in leaks:
                    write.write_line(f"  {leak}")
                if not only_leaked and any(leak.startswith("fd ") for leak in leaks):
                    why = "the traceback of a failed test keeps its local variables alive, and what they hold open"
                    write.write_line(f"  ({why})")
        # One worker may know what the others only saw.
        unattributed = self._not_blamed()
        parallel = "Appeared while tests ran in parallel; it is not known which of them made it, or whether any did."
        unknown = [f"{printable(why)} ({count(tests, 'test')})" for why, tests in self._unknown.items()]
        kept = [f"{printable(label)} ({reason})" for reason, label in sorted(self._kept.values())]
        written = [f"{printable(label)} ({reason})" for reason, label in sorted(self._written.items())]
        unused = [f"{kind}: {printable(reason)}" for kind, reason in sorted(self._unused or ())]
        for title, note, found in (
            ("unattributed", [parallel], unattributed),
            ("unknown", [], unknown),
            ("kept by Python itself, not a leak of a test", [], kept),
            ("written by pytest and tools beside it, not a leak of a test (one example each)", [], written),
            ("unused allow rules", [], unused),
        ):
            if found:
                write.write_sep("=", f"leakcheck: {title}", yellow=found not in (kept, written))
                for line in (*note, *(f"  {one}" for one in found)):
                    write.write_line(line)

    def _not_blamed(self) -> list[str]:
        return [line for key, line in self._unattributed.items() if line and key not in self._blamed]

    def pytest_unconfigure(self) -> None:
        """Close the reports."""
        self._reports.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the reports. Give leaks the type ``leak`` in JUnit XML, just before it is written."""
        if (status := self._reports.write(exitstatus, self._not_blamed())) != exitstatus:
            session.exitstatus = status
        # pytest has no hook for an element's attributes. Without its junitxml plugin, or if the plugin's internals
        # change, the type is missing.
        xml = next((p for p in self._config.pluginmanager.get_plugins() if type(p).__name__ == "LogXML"), None)
        for reporter in getattr(xml, "node_reporters_ordered", []):
            for error in reporter.to_xml().iter("error"):
                if _LEAKED in error.get("message", ""):
                    error.set("type", "leak")
                    error.set("message", "passed but leaked")
