"""The pytest plugin: checks that every test of a suite, or each one that requests it, leaves nothing behind.

A test is guarded from the setup of its first function-scoped fixture to the teardown of its last. What a fixture of
class, module, package or session scope makes is therefore in the baseline of the first test that requests it. A
fixture that a test requests with `getfixturevalue` while it runs is observed separately, and what it makes does not
count for the test either.

A test that passed and left something is *leaked*: a separate outcome, which fails the session. A failed test stays
failed, with its own error, and its leaks are listed separately.
"""

import copy
from collections.abc import Generator
from typing import Any

import pytest

from leakcheck.errors import LeakcheckWarning, UsageError
from leakcheck.printable import printable
from leakcheck.pytest_item import ItemGuard, LeakCheck, Settings, marker_rule
from leakcheck.pytest_rules import noting_loop
from leakcheck.pytest_summary import Summary, attach

__all__ = ["LeakCheck"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option and the ini settings."""
    group = parser.getgroup("leakcheck")
    what = "guard every test; --leakcheck=KIND,… selects the kinds to observe"
    group.addoption("--leakcheck", nargs="?", const="", default=None, metavar="KINDS", help=what)
    what = "save a report: .html, .xml (JUnit), .sarif or .md (Markdown); may be repeated"
    group.addoption("--leakcheck-report", action="append", default=[], metavar="FILE", help=what)
    parser.addini("leakcheck_kinds", "kinds to observe in guarded tests", type="args", default=[])
    parser.addini("leakcheck_allow", "TOML file of [[allow]] rules, relative to the root directory", default="")
    parser.addini("leakcheck_settle", "seconds for asynchronous teardown (default: 0.5)", default="")
    parser.addini("leakcheck_unknown", "effect of an unknown verdict: warn or fail (default: warn)", default="")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Keep ``--leakcheck tests/`` from reading the path as kinds: kinds need ``=``."""
    end = args.index("--") if "--" in args else len(args)
    if "--leakcheck" in args[:end]:
        args[:end] = ["--leakcheck=" if arg == "--leakcheck" else arg for arg in args[:end]]
        # pytest has already extracted the paths, because it loads their conftest files next.
        again = parser.parse_known_args(args, namespace=copy.copy(early_config.option))
        early_config.known_args_namespace.file_or_dir = again.file_or_dir


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings and register the marker."""
    config.addinivalue_line(
        "markers",
        "leaks_allowed(kind, *, reason, expires=None, **match): residue of this kind may stay if its details match "
        "the globs. The reason is required; a rule that matches nothing is a warning.",
    )
    try:
        settings = Settings.of(config)
        summary = None if hasattr(config, "workerinput") else Summary(config, settings)
    except UsageError as error:
        raise pytest.UsageError(f"leakcheck: {error}") from error
    config.pluginmanager.register(Guards(settings), "leakcheck-guards")
    if summary is not None:
        config.pluginmanager.register(summary, "leakcheck-summary")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the configuration file, whose allow rules hold."""
    guards = config.pluginmanager.get_plugin("leakcheck-guards")
    file = guards.settings.file if isinstance(guards, Guards) else None
    return None if file is None else f"leakcheck: configuration: {printable(str(file))}"


@pytest.fixture
def leakcheck(request: pytest.FixtureRequest) -> LeakCheck:
    """Guard this test: it fails as *leaked* if it passes and leaves something behind."""
    guards = request.config.pluginmanager.get_plugin("leakcheck-guards")
    if not isinstance(guards, Guards) or guards.current is None:
        raise UsageError("fixture leakcheck: request it as an argument of the test, not while the test runs")
    if guards.settings.refused:
        raise UsageError(guards.settings.refused)
    return LeakCheck(guards.current)


class Guards:
    """The hooks around each test, in the process that runs it: this one or an xdist worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.current: ItemGuard | None = None
        self._watches = False
        """Whether a guard may have left what watches the machine."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Reject wrong markers before any test runs; an xdist worker reports them test by test."""
        if hasattr(config, "workerinput"):
            return
        for item in items:
            for mark in item.iter_markers("leaks_allowed"):
                try:
                    marker_rule(mark)
                except UsageError as error:
                    raise pytest.UsageError(f"{item.nodeid}: {error}") from error

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Prepare a guard; the first function-scoped fixture, or the test itself, starts it."""
        if self.settings.whole_suite or "leakcheck" in getattr(item, "fixturenames", ()):
            guard = self.current = ItemGuard(item, self.settings)
            self._watches = True
            own_teardown = item.teardown

            # A node's teardown runs after its fixtures' finalizers and before any node above it is torn down.
            def teardown() -> None:
                try:
                    own_teardown()
                finally:
                    guard.finish()

            item.teardown = teardown  # type: ignore[method-assign]
        else:
            # It would record all that the test does, in this process's memory and time.
            self._stop_watching()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Start the guard before a function-scoped fixture; exclude what other fixtures make."""
        if self.current is None:
            return (yield)
        if fixturedef.scope == "function":
            self.current.start()
            with noting_loop(fixturedef):
                return (yield)
        with self.current.excusing():
            return (yield)

    # Innermost, so that pytest's capture has already replaced descriptors 1 and 2, as when the guard ends.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Start the guard of a test that has no function-scoped fixtures."""
        if self.current is not None:
            self.current.start()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the findings to the teardown's report, the first one after the guard's end."""
        report = yield
        guard = self.current
        if guard is not None and guard.item is item:
            guard.failed |= report.failed
            if call.when == "teardown":
                self.current = None
                guard.abandon()
                attach(guard, report)
                _warn_of_unused(guard)
        return report

    def pytest_unconfigure(self) -> None:
        """Leave no guard running when the session is cut short, or after an internal error."""
        if self.current is not None:
            self.current.abandon()
            self.current = None
        self._stop_watching()

    pytest_keyboard_interrupt = pytest_unconfigure

    def _stop_watching(self) -> None:
        if self._watches:
            self.settings.remembered.close()
            self._watches = False


def _warn_of_unused(guard: ItemGuard) -> None:
    # A test that failed or was cut short may not have reached the code that its rules are for.
    if guard.report is None or guard.failed:
        return
    unused = {(rule.kind, rule.reason) for rule in guard.report.unused_rules}
    for rule in guard.rules:
        if (rule.kind, rule.reason) in unused:
            guard.item.warn(LeakcheckWarning(f"leaks_allowed({rule.kind!r}, reason={rule.reason!r}) matched nothing"))
