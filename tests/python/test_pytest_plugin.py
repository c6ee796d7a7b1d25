"""The pytest plugin, each test in a pytest of its own."""

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# Descriptors of the test's own process: quick to see, the same for every user, and gone with the process.
KINDS = "--leakcheck=fd"

LEAKING = """
    kept = []
    def test_leaking():
        kept.append(open("/etc/passwd"))
    def test_clean():
        with open("/etc/passwd") as file:
            file.read()
"""


@pytest.fixture(autouse=True)
def quick(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\nleakcheck_settle = 0.05\n")
    # A fifth of the time, for nothing: it is imported at the end, to tell of examples.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=120)


def test_a_test_that_passed_but_leaked_is_a_result_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKING)
    result = run(pytester, KINDS, "-v")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*::test_leaking LEAKED*",
            "*1 test left something behind*",
            "LEAKED *::test_leaking",
            "*fd*/etc/passwd*",
            "*1 passed, 1 leaked*",
        ]
    )
    result.stdout.no_fnmatch_line("*test_clean LEAKED*")


def test_its_letter_is_l(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKING)
    run(pytester, KINDS).stdout.re_match_lines([r".*\.L\."])


def test_without_the_option_nothing_is_guarded(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKING)
    result = run(pytester)
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*leakcheck:*")


def test_the_fixture_guards_just_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        kept = []
        def test_unguarded():
            kept.append(open("/etc/passwd"))
        def test_guarded(leakcheck):
            kept.append(open("/etc/passwd"))
        """
    )
    result = run(pytester, "-o", "leakcheck_kinds=fd")
    result.stdout.fnmatch_lines(["LEAKED *::test_guarded", "*1 passed, 1 leaked*"])


def test_a_test_that_is_not_guarded_is_not_watched(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        def descriptors():
            return [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
        def test_guarded(leakcheck):
            # The test can see it.
            assert "anon_inode:[eventpoll]" in descriptors()
        def test_unguarded():
            assert "anon_inode:[eventpoll]" not in descriptors()
        def test_guarded_again(leakcheck):
            assert "anon_inode:[eventpoll]" in descriptors()
        """
    )
    run(pytester).assert_outcomes(passed=3)


def test_the_fixture_allows_snapshots_and_reports(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        kept, seen = [], []
        def test_allowed(leakcheck):
            seen.append(leakcheck)
            assert leakcheck.snapshot().count("fd") > 0
            assert leakcheck.report is None
            leakcheck.allow("fd", "kept on purpose", target="/etc/pass*")
            kept.append(open("/etc/passwd"))
        def test_report_is_there_afterwards():
            report = seen[0].report
            assert report.verdict == "clean"
            assert [allowed.reason for allowed in report.allowed] == ["kept on purpose"]
        """
    )
    run(pytester, "-o", "leakcheck_kinds=fd").assert_outcomes(passed=2)


def test_a_failing_test_stays_failed_with_its_own_error_and_its_leak_beside(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        kept = []
        def test_both():
            kept.append(open("/etc/passwd"))
            assert 1 == 2, "its own error"
        """
    )
    result = run(pytester, KINDS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: its own error*",
            "*leakcheck, seen after teardown*",
            "*fd*/etc/passwd*",
            "FAILED and leaked *::test_both",
            "*1 failed*",
        ]
    )
    result.stdout.no_fnmatch_line("*1 leaked*")


def test_an_error_in_teardown_stays_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        kept = []
        @pytest.fixture
        def broken():
            yield
            raise RuntimeError("in teardown")
        def test_it(broken):
            kept.append(open("/etc/passwd"))
        """
    )
    result = run(pytester, KINDS)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: in teardown*", "*fd*/etc/passwd*"])


def test_what_a_function_fixture_cleans_up_in_teardown_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def opened():
            with open("/etc/passwd") as file:
                yield file
        def test_it(opened, tmp_path, capfd, monkeypatch):
            (tmp_path / "kept").write_text("by pytest")
        """
    )
    run(pytester, KINDS).assert_outcomes(passed=1)


def test_what_a_function_fixture_leaves_is_a_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        kept = []
        @pytest.fixture
        def opened():
            kept.append(open("/etc/passwd"))
        def test_it(opened):
            pass
        """
    )
    run(pytester, KINDS).stdout.fnmatch_lines(["*1 leaked*"])


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
@pytest.mark.parametrize("how", ["as an argument", "in mid-test"])
def test_what_a_fixture_of_higher_scope_opens_is_not_blamed_on_its_first_user(
    pytester: pytest.Pytester, scope: str, how: str
) -> None:
    body = (
        "def test_{}(kept_open, own): pass"
        if how == "as an argument"
        else "def test_{}(request, own): request.getfixturevalue('kept_open')"
    )
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.fixture
        def own():
            with open("/etc/hostname") as file:
                yield file
        @pytest.fixture(scope="{scope}")
        def kept_open():
            with open("/etc/passwd") as file:
                yield file
        {body.format("first")}
        {body.format("last")}
        """
    )
    run(pytester, KINDS).assert_outcomes(passed=2)


def test_what_the_teardown_of_a_higher_scope_leaves_is_not_blamed_on_the_last_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        kept = []
        @pytest.fixture(scope="module")
        def untidy():
            yield
            kept.append(open("/etc/passwd"))
        def test_it(untidy):
            pass
        """
    )
    run(pytester, KINDS).assert_outcomes(passed=1)


def test_unittest_cases_are_guarded_with_their_set_up_and_tear_down(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import unittest
        class Case(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.shared = open("/etc/passwd")
            @classmethod
            def tearDownClass(cls):
                cls.shared.close()
            def setUp(self):
                self.file = open("/etc/hostname")
            def tearDown(self):
                self.file.close()
            def test_clean(self):
                pass
            def test_leaking(self):
                type(self).kept = open("/etc/hostname")
        """
    )
    run(pytester, KINDS).stdout.fnmatch_lines(["LEAKED *::test_leaking", "*1 passed, 1 leaked*"])


def test_pytests_own_descriptors_and_files_are_not_flagged(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import logging, sys
        def test_talkative(tmp_path, capsys, caplog, recwarn, record_property):
            (tmp_path / "file").write_text("kept by pytest")
            print("out")
            print("err", file=sys.stderr)
            logging.warning("log")
        def test_sys_disabled(capsys):
            with capsys.disabled():
                print("straight")
        """
    )
    for extra in ([], ["-s"], ["--capture=sys"], ["--log-file=own.log"], ["--junitxml=own.xml"]):
        run(pytester, "--leakcheck=fd,process,file", *extra).assert_outcomes(passed=2)


def test_a_file_in_tmp_path_and_garbage_of_the_test_take_no_time_to_settle(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import gc, socket
        class Cycle:
            def __init__(self):
                self.itself, self.socket = self, socket.socket()
        def test_file(leakcheck, tmp_path, request):
            (tmp_path / "file").write_text("kept for three sessions")
            request.session.checks = [leakcheck]
        def test_young_garbage(leakcheck, request):
            Cycle()
            request.session.checks.append(leakcheck)
        def test_old_garbage(leakcheck):
            cycle = Cycle()
            gc.collect()
            del cycle
        def test_reports(request):
            for check in request.session.checks:
                assert (check.report.verdict, check.report.settle.looks) == ("clean", 1)
        """
    )
    result = run(pytester, "-o", "leakcheck_kinds=fd file", "-o", "leakcheck_settle=5")
    result.assert_outcomes(passed=4)


def test_a_descriptor_with_the_number_and_file_of_one_in_old_garbage_is_a_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import gc
        class Cycle:
            def __init__(self):
                self.itself, self.file = self, open("/etc/passwd")
        cycle, kept, numbers = Cycle(), [], []
        gc.collect()
        def test_drops_it():
            global cycle
            numbers.append(cycle.file.fileno())
            del cycle
        def test_replaces_it():
            gc.collect()
            kept.append(open("/etc/passwd"))
            numbers.append(kept[0].fileno())
        def test_numbers():
            assert numbers[0] == numbers[1]
        """
    )
    result = run(pytester, KINDS, "-W", "ignore")
    result.stdout.fnmatch_lines(["LEAKED *::test_replaces_it", "*2 passed, 1 leaked*"])


def test_what_a_thread_holds_that_ends_while_the_residue_settles_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import gc, threading

        class Held: pass

        def test_it():
            held, collected = Held(), threading.Event()
            held.itself, held.file = held, open("/etc/passwd")

            def told(phase, info):
                if phase == "stop" and info["generation"] == 2:
                    collected.set()

            def hold(held):
                collected.wait()
                gc.callbacks.remove(told)

            gc.collect()
            gc.callbacks.append(told)
            threading.Thread(target=hold, args=[held]).start()
        """
    )
    run(pytester, KINDS, "-o", "leakcheck_settle=20").assert_outcomes(passed=1)


def test_a_process_that_a_test_leaves_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import subprocess
        def test_it():
            # It ends with this process: its stdin is a pipe that nobody else holds.
            test_it.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        """
    )
    result = run(pytester, "--leakcheck=process")
    result.stdout.fnmatch_lines(["LEAKED *::test_it", "*process*cat*"])


def test_a_leak_has_a_type_of_its_own_in_junit_xml(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKING)
    run(pytester, KINDS, "--junitxml=out.xml")
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "out.xml").iter("testcase")}
    errors = cases["test_leaking"].findall("error")
    assert [(error.get("type"), error.get("message")) for error in errors] == [("leak", "passed but leaked")]
    assert "/etc/passwd" in (errors[0].text or "")
    assert not list(cases["test_clean"])


def test_the_session_stops_at_a_leak_with_x_and_runs_it_again_with_lf(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKING)
    first = pytester.runpytest_subprocess(KINDS, "-x", timeout=120)
    first.stdout.fnmatch_lines(["*1 leaked*"])
    first.stdout.no_fnmatch_line("*passed*")
    pytester.runpytest_subprocess(KINDS, "--lf", timeout=120).stdout.fnmatch_lines(["*1 leaked*"])


class TestMarker:
    def test_allows_what_it_describes(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import pytest
            kept = []
            @pytest.mark.leaks_allowed("fd", reason="kept on purpose", target="/etc/pass*")
            def test_it():
                kept.append(open("/etc/passwd"))
            """
        )
        run(pytester, KINDS, "--strict-markers").assert_outcomes(passed=1)

    def test_allows_nothing_else(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import pytest
            kept = []
            @pytest.mark.leaks_allowed("fd", reason="another file", target="/etc/hostname")
            def test_it():
                kept.append(open("/etc/passwd"))
            """
        )
        run(pytester, KINDS).stdout.fnmatch_lines(["*1 leaked*"])

    def test_that_matched_nothing_is_a_warning(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import pytest
            @pytest.mark.leaks_allowed("fd", reason="mended long ago")
            def test_it():
                pass
            """
        )
        result = run(pytester, KINDS)
        result.assert_outcomes(passed=1, warnings=1)
        result.stdout.fnmatch_lines(["*leaks_allowed('fd', reason='mended long ago') matched nothing*"])

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ("'fd'", "give a reason"),
            ("'fd', reason=' '", "give a reason"),
            ("reason='no kind'", "give one kind"),
            ("'nonsense', reason='x'", "unknown kind"),
            ("'fd', reason='x', colour='red'", "has no detail"),
            ("'fd', reason='x', expires='soon'", "give a datetime.date"),
        ],
    )
    def test_that_states_no_rule_is_a_usage_error(
        self, pytester: pytest.Pytester, arguments: str, complaint: str
    ) -> None:
        pytester.makepyfile(f"import pytest\n@pytest.mark.leaks_allowed({arguments})\ndef test_it(): pass\n")
        result = run(pytester, KINDS)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        (line,) = [line for line in result.errlines if line.startswith("ERROR")]
        assert complaint in line
        assert "test_it" in line


class TestConfiguration:
    def test_kinds_come_with_an_equals_sign_so_that_a_path_may_follow(self, pytester: pytest.Pytester) -> None:
        path = pytester.makepyfile("def test_it(): pass")
        run(pytester, "-o", "leakcheck_kinds=fd", "--leakcheck", str(path)).assert_outcomes(passed=1)

    def test_a_conftest_beside_that_path_is_still_loaded_first(self, pytester: pytest.Pytester) -> None:
        pytester.mkdir("suite").joinpath("conftest.py").write_text(
            "def pytest_addoption(parser): parser.addoption('--own')\n"
        )
        pytester.path.joinpath("suite", "test_it.py").write_text(
            "def test_it(pytestconfig): assert pytestconfig.option.own == '1'\n"
        )
        run(pytester, "-o", "leakcheck_kinds=fd", "--leakcheck", "suite", "--own=1").assert_outcomes(passed=1)

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--leakcheck=fd,nonsense"], "unknown kind 'nonsense'"),
            (["--leakcheck", "-o", "leakcheck_settle=soon"], "leakcheck_settle = soon"),
            (["--leakcheck", "-o", "leakcheck_settle=-1"], "seconds from 0 to 3600"),
            (["--leakcheck", "-o", "leakcheck_unknown=maybe"], "write warn or fail"),
            (["--leakcheck", "-o", "leakcheck_allow=missing.toml"], "missing.toml"),
        ],
    )
    def test_a_wrong_setting_is_one_clear_line(
        self, pytester: pytest.Pytester, arguments: list[str], complaint: str
    ) -> None:
        pytester.makepyfile("def test_it(): pass")
        result = run(pytester, *arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        (line,) = [line for line in result.errlines if line]
        assert complaint in line

    def test_an_allow_file_counts_for_every_test_and_is_told_when_unused_in_all(
        self, pytester: pytest.Pytester
    ) -> None:
        pytester.makepyfile(LEAKING)
        pytester.path.joinpath("allow.toml").write_text(
            '[[allow]]\nkind = "fd"\nreason = "known"\nmatch = { target = "/etc/passwd" }\n'
            '[[allow]]\nkind = "fd"\nreason = "never"\nmatch = { target = "/nowhere" }\n'
        )
        result = run(pytester, KINDS, "-o", "leakcheck_allow=allow.toml")
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["*unused allow rules*", "*fd: never*"])
        result.stdout.no_fnmatch_line("*fd: known*")


UNKNOWN = """
    import pytest
    from leakcheck import _guard
    @pytest.fixture(autouse=True)
    def nothing_to_see(monkeypatch):
        real = _guard.Run.end
        def end(self, *_rules):
            report = real(self)
            import msgspec
            from leakcheck.report import Coverage
            gap = {"fd": Coverage(level="none", reason="a reason [bold]told[/]")}
            return msgspec.structs.replace(report, verdict="unknown", coverage=gap)
        _guard.Run.end = end
    def test_it():
        pass
"""


def test_unknown_is_told_with_its_reasons_and_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNKNOWN)
    result = run(pytester, KINDS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*leakcheck: unknown*", "*fd: none, a reason ?bold?told?/? (1 test)"])


def test_unknown_fails_where_the_ini_file_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(UNKNOWN)
    result = run(pytester, KINDS, "-o", "leakcheck_unknown=fail")
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_check_that_crashes_is_unknown_and_never_the_tests_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from leakcheck import NativeError, _guard
        def test_it(monkeypatch):
            def end(self, *_rules):
                raise NativeError("read /proc: no")
            _guard.Run.end = end
        """
    )
    result = run(pytester, KINDS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*leakcheck: unknown*", "*the check itself failed: read /proc: no*"])


@pytest.mark.parametrize("broken", ["__new__", "end"])
def test_a_check_of_a_fixture_that_crashes_is_unknown_and_blames_nobody(pytester: pytest.Pytester, broken: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from leakcheck import NativeError, pytest_item
        kept = []
        class Broken:
            def __init__(self, **options):
                if {broken!r} == "__new__":
                    raise NativeError("read /proc: no")
            def end(self, *_rules):
                raise NativeError("read /proc: no")
            def abandon(self):
                pass
        @pytest.fixture(scope="module")
        def file():
            kept.append(open("/etc/passwd"))
        def test_it(request, monkeypatch):
            monkeypatch.setattr(pytest_item._native, "Guard", Broken)
            request.getfixturevalue("file")
        """
    )
    result = run(pytester, KINDS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*leakcheck: unknown*", "*fixture*: read /proc: no*"])


@pytest.mark.parametrize("outcome", ["pytest.skip('no')", "pytest.xfail('no')"])
def test_a_skipped_test_that_leaked_is_counted_once(pytester: pytest.Pytester, outcome: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        kept = []
        def test_it():
            kept.append(open("/etc/passwd"))
            {outcome}
        """
    )
    result = run(pytester, KINDS)
    result.stdout.re_match_lines([r"=+ 1 leaked in .*"])


def test_ctrl_c_in_a_guarded_test_ends_the_session_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it():\n    raise KeyboardInterrupt\n")
    result = run(pytester, KINDS)
    assert result.ret == pytest.ExitCode.INTERRUPTED


class TestXdist:
    def test_each_worker_reports_its_own_leaks(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import pytest
            kept = []
            @pytest.mark.parametrize("n", range(6))
            def test_it(n):
                if n % 3 == 0:
                    kept.append(open("/etc/passwd"))
            """
        )
        result = run(pytester, KINDS, "-n", "2")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines_random(["LEAKED *::test_it?0?", "LEAKED *::test_it?3?", "*4 passed, 2 leaked*"])

    @pytest.mark.skipif(os.geteuid() != 0, reason="who made a file is known to root only: fanotify wants CAP_SYS_ADMIN")
    def test_a_neighbours_file_and_process_are_not_blamed(self, pytester: pytest.Pytester, tmp_path: Path) -> None:
        litter = Path(f"/var/tmp/leakcheck-neighbour-{os.getpid()}")
        for fifo in ("guarded", "littered"):
            os.mkfifo(tmp_path / fifo)
        # Opening a FIFO waits for the other side: the tidy test's guard has begun before the litter and ends after it.
        pytester.makepyfile(
            f"""
            import subprocess
            from pathlib import Path
            here, litter = Path({str(tmp_path)!r}), Path({str(litter)!r})
            def test_tidy():
                (here / "guarded").open("w").close()
                (here / "littered").open("r").close()
            def test_untidy():
                (here / "guarded").open("r").close()
                litter.write_text("left behind")
                test_untidy.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                (here / "littered").open("w").close()
            """
        )
        try:
            result = run(pytester, "--leakcheck=file,process", "-n", "2")
        finally:
            litter.unlink(missing_ok=True)
        result.stdout.fnmatch_lines(
            ["LEAKED *::test_untidy", "*process*cat*", f"*file*{litter}*", "*1 passed, 1 leaked*"]
        )
        result.stdout.no_fnmatch_line("*LEAKED *::test_tidy*")

    def test_a_marker_that_states_no_rule_is_told_by_the_worker(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile("import pytest\n@pytest.mark.leaks_allowed('fd')\ndef test_it(): pass\n")
        result = run(pytester, KINDS, "-n", "1")
        assert result.ret != pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["*leaks_allowed('fd'): give a reason*"])


def test_what_a_thread_keeps_of_our_own_descriptors_is_not_blamed_on_a_later_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import ctypes, os, threading
        kept = []
        def test_thread():
            ready = threading.Event()
            def leave_the_table():
                assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
                ready.set()
                threading.Event().wait()
            threading.Thread(target=leave_the_table, daemon=True).start()
            ready.wait()
        def test_1(): kept.append(os.open("/etc/passwd", os.O_RDONLY))
        def test_2(): kept.append(os.open("/etc/passwd", os.O_RDONLY))
        def test_3(): kept.append(os.open("/etc/passwd", os.O_RDONLY))
        def test_4(): kept.append(os.open("/etc/passwd", os.O_RDONLY))
        """
    )
    shown = run(pytester, KINDS).stdout.str()
    first, *others = shown.split("LEAKED ")[1:]
    assert "in the table of thread" in first
    assert len(others) == 4
    assert not [one for one in others if "in the table of thread" in one], shown
