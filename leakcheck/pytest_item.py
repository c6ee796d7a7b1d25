"""The guard of one test, from its first function-scoped fixture to the end of its last."""

import contextlib
import datetime
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leakcheck import _native
from leakcheck._guard import Run, milliseconds
from leakcheck.allow import AllowRule, read_allow_file
from leakcheck.config import Config
from leakcheck.config_file import find
from leakcheck.errors import NativeError, UsageError
from leakcheck.pytest_garbage import Garbage
from leakcheck.pytest_origins import Origins
from leakcheck.pytest_rules import NAMES as KEPT_FOR_LIFE
from leakcheck.pytest_rules import OF_TOOLS, compiled, kept_for_life, of_session
from leakcheck.report import Report

# The kinds whose residue can be attributed to this process and its children on a busy host.
DEFAULT_KINDS = "process,fd,mount,cgroup,lock,file,ipc,namespace"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked settings of the command line and the ini file."""

    whole_suite: bool
    kinds: str
    allow: str
    settle_ms: int
    unknown_fails: bool
    attributed_only: bool
    own_reasons: frozenset[str]
    refused: str = ""
    """Why the configuration file cannot be used; then no test can be guarded."""
    file: Path | None = None
    """The configuration file."""
    remembered: _native.Remembered = field(default_factory=_native.Remembered)
    """What the looks of the session share."""

    @classmethod
    def of(cls, config: pytest.Config) -> "Settings":
        """Read the settings; raise a `UsageError` that names the wrong one."""
        option: str | None = config.getoption("leakcheck")
        refused, of_file = "", Config()
        try:
            of_file = find(config.rootpath)
            given = {key: setting.value for key, setting in of_file.for_pytest().items()}
        except UsageError as error:
            # A suite that leakcheck does not guard must not fail for what lies above it.
            if option is not None:
                raise
            refused, given = str(error), {}
        kinds = option or ",".join(config.getini("leakcheck_kinds")) or given.get("kinds") or DEFAULT_KINDS
        for kind in kinds.split(","):
            if kind.strip() not in _native.KINDS:
                known = ", ".join(_native.KINDS)
                raise UsageError(f"--leakcheck={kinds}: unknown kind {kind.strip()!r}: choose from {known}")
        unknown = config.getini("leakcheck_unknown") or given.get("unknown") or "warn"
        if unknown not in ("warn", "fail"):
            raise UsageError(f"leakcheck_unknown = {unknown}: write warn or fail")
        settle = config.getini("leakcheck_settle") or given.get("settle", 0.5)
        try:
            settle_ms = milliseconds(float(settle))
        except ValueError as error:
            raise UsageError(f"leakcheck_settle = {settle}: give seconds from 0 to 3600") from error
        file = config.getini("leakcheck_allow")
        rules = read_allow_file(config.rootpath / file) if file else of_file.allow
        own = of_session(config)
        return cls(
            whole_suite=option is not None,
            kinds=kinds,
            allow="\n".join([rules, *(rule.to_toml() for rule in own)]),
            settle_ms=settle_ms,
            unknown_fails=unknown == "fail",
            # Other xdist workers leave traces that nothing ties to any worker.
            attributed_only="PYTEST_XDIST_WORKER" in os.environ,
            own_reasons=OF_TOOLS | KEPT_FOR_LIFE,
            refused=refused,
            file=of_file.path,
        )


class ItemGuard:
    """Guards one test item: it starts as late and ends as early as the run protocol allows for the test's own part."""

    def __init__(self, item: pytest.Item, settings: Settings) -> None:
        self.item = item
        self.settings = settings
        self.rules = [marker_rule(mark) for mark in item.iter_markers("leaks_allowed")]
        self.report: Report | None = None
        self.failure: str | None = None
        self.failed = False
        self._run: Run | None = None
        self._origins = Origins()
        self._garbage = Garbage()
        self._excused: set[str] = set()
        self._excusing = False
        self._over = False

    def start(self) -> None:
        """Take the baseline, unless there is one: what exists now does not belong to the test."""
        if self._run is not None or self._over:
            return
        with self._giving_up("no baseline"):
            self._garbage.begin()
            self._run = Run(
                collect_old=False,
                kinds=self.settings.kinds,
                allow="\n".join([self.settings.allow, *(rule.to_toml() for rule in self.rules)]),
                settle_ms=self.settings.settle_ms,
                attributed_only=self.settings.attributed_only,
                remembered=self.settings.remembered,
            )
            self._origins.begin()

    def allow(self, rule: AllowRule) -> None:
        """Add a rule for this test while it runs."""
        text = rule.to_toml()
        _native.check_allow(text, f"rule of {self.item.nodeid}")
        self.rules.append(rule)
        if self._run is not None:
            self._run.allow(text)

    @contextlib.contextmanager
    def excusing(self) -> Generator[None, None, None]:
        """Do not count what a higher-scoped fixture makes that the test requests while it runs."""
        if self._run is None or self._excusing:
            yield
            return
        # Not two snapshots: a comparison attributes what a baseline process opens later to others.
        with self._giving_up("no baseline of a fixture"):
            shared = self.settings.remembered
            fixture = _native.Guard(kinds=self.settings.kinds, settle_ms=0, include_self=True, remembered=shared)
        if self._over:
            yield
            return
        self._excusing = True
        try:
            yield
        finally:
            self._excusing = False
            with self._giving_up("the check of a fixture failed"):
                self._excused.update(leak.key for leak in Report.from_json(fixture.end()).leaks)
            fixture.abandon()

    @contextlib.contextmanager
    def _giving_up(self, what: str) -> Generator[None, None, None]:
        """If the machine refuses it, leave the test without a verdict."""
        try:
            yield
        except NativeError as error:
            self.abandon()
            self.failure = f"{what}: {error}"

    def finish(self) -> None:
        """Settle and judge; a failed check is unknown, never the test's own error."""
        run, self._run = self._run, None
        self._over = True
        if run is None:
            return
        with self._giving_up("the check itself failed"):
            run.forget(self._garbage.end())
            self._origins.end()
            report = self._origins.tell(run.end(self._late_rules), str(self.item.config.rootpath))
            unused = [rule for rule in report.unused_rules if rule.reason not in self.settings.own_reasons]
            leaks = [leak for leak in report.leaks if leak.key not in self._excused]
            if report.leaks and not leaks:
                report = msgspec.structs.replace(report, verdict="unknown" if report.gaps else "clean")
            self.report = msgspec.structs.replace(report, unused_rules=unused, leaks=leaks)

    def _late_rules(self) -> str:
        """Return the rules that hold only for what is there at the end, which few tests need."""
        return "\n".join(rule.to_toml() for rule in (*kept_for_life(), *compiled(self.item.config)))

    def abandon(self) -> None:
        """Give up without a verdict; harmless when finished."""
        self._origins.end()
        self._garbage.end()
        run, self._run = self._run, None
        self._over = True
        if run is not None:
            run.abandon()


class LeakCheck:
    """The value of the fixture `leakcheck`: a test that uses it is guarded even if the suite is not."""

    def __init__(self, guard: ItemGuard) -> None:
        self._guard = guard

    def allow(self, kind: str, reason: str, **match: str) -> None:
        """Allow residue of `kind` whose details match the globs of `match`, as the marker ``leaks_allowed`` does."""
        self._guard.allow(AllowRule(kind, match, reason=reason))

    def snapshot(self) -> _native.Snapshot:
        """Take a snapshot of the guarded kinds, including this process."""
        return _native.snapshot(kinds=self._guard.settings.kinds, include_self=True)

    @property
    def report(self) -> Report | None:
        """The report, after teardown of the test's function-scoped fixtures; None before, or if the check failed."""
        return self._guard.report


def marker_rule(mark: pytest.Mark) -> AllowRule:
    """Return the rule of the marker ``leaks_allowed(kind, reason=…, **match)``; raise `UsageError` if it is wrong."""
    arguments: dict[str, Any] = dict(mark.kwargs)
    reason, expires = arguments.pop("reason", None), arguments.pop("expires", None)
    how = 'write leaks_allowed("file", reason="why", path="/tmp/glob*")'
    if len(mark.args) != 1 or not isinstance(mark.args[0], str):
        raise UsageError(f"leaks_allowed{mark.args}: give one kind: {how}")
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"leaks_allowed({mark.args[0]!r}): give a reason: {how}")
    if expires is not None and not isinstance(expires, datetime.date):
        raise UsageError(f"leaks_allowed({mark.args[0]!r}): expires={expires!r}: give a datetime.date")
    match = {name: str(glob) for name, glob in arguments.items()}
    rule = AllowRule(mark.args[0], match, reason=reason, expires=expires)
    _native.check_allow(rule.to_toml(), f"leaks_allowed({mark.args[0]!r})")
    return rule
