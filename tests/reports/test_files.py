"""Whatever runs writes reports: campaigns, guard and the pytest plugin, with the same messages and the same safety."""

import json
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import typer
from made import LEAKCHECK, target

from leakcheck.campaigns import CAMPAIGNS, Criterion, Leaks, LeaksOptions, Result, run
from leakcheck.cli import app
from leakcheck.report import Report, Verdict
from leakcheck.reports import junit, markdown, page, sarif
from leakcheck.reports.files import Reports
from leakcheck.reports.of_campaign import of_campaign
from leakcheck.reports.of_guard import of_guard
from leakcheck.reports.of_session import Guarded, Left, of_session
from leakcheck.reports.of_verify import of_verify
from leakcheck.reports.rows import Report as Rows
from leakcheck.trials.executor import Ui
from leakcheck.verify import Verification, Verifications, plan_of
from leakcheck.verify.result import PartResult, judged, status_of, verdict_of

SUFFIXES = (".html", ".xml", ".sarif", ".md")
pytest_plugins = ["pytester"]


def command(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **more},
    )


def reports(directory: Path) -> list[str]:
    return [word for suffix in SUFFIXES for word in ("--report", str(directory / f"r{suffix}"))]


def written(directory: Path) -> tuple[str, Xml.Element, dict[str, list[dict[str, object]]], str]:
    html, xml, sarif_text, md = ((directory / f"r{suffix}").read_text() for suffix in SUFFIXES)
    return html, Xml.fromstring(xml), json.loads(sarif_text)["runs"][0], md


def test_guard_writes_each_report_of_a_leak_and_keeps_its_exit_code(tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    evil = "left <b>]]>`````::error::x"
    done = command(
        "guard", "--kinds", "file,process", "--roots", roots, *reports(tmp_path), "--", "touch", roots / evil
    )
    assert done.returncode == 1, done.stderr
    html, xml, run, md = written(tmp_path)
    assert "left &lt;b&gt;" in html
    assert "<b>]]>" not in html
    (suite,) = xml
    assert suite.attrib | {"time": ""} == {
        "name": "touch guard",
        "tests": "2",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
        "time": "",
    }
    assert [case.attrib["name"] for case in suite if case.find("failure") is not None] == ["leaks of kind file"]
    (result,) = run["results"]
    assert result["ruleId"] == "leaked"
    assert md.startswith("## leakcheck guard touch: leaked")
    assert not any(line.startswith("::") for line in md.splitlines())


def test_guard_that_saw_not_everything_passes_in_no_report() -> None:
    found = Report.from_json(
        json.dumps(
            {
                "schema": "leakcheck.report/1",
                "verdict": "unknown",
                "coverage": {"fd": {"level": "partial", "reason": "why"}},
                "command": {"argv": ["x"], "exit": 0},
            }
        )
    )
    (suite,) = Xml.fromstring(junit(of_guard(found)))
    assert (suite.attrib["errors"], suite.attrib["tests"]) == ("1", "1")
    # A verdict that no criterion explains.
    odd = Report.from_json(json.dumps({"schema": "leakcheck.report/1", "verdict": "unknown"}))
    (suite,) = Xml.fromstring(junit(of_guard(odd)))
    assert suite.attrib["errors"] == "1"


def test_an_unknown_suffix_and_a_path_that_cannot_be_written_end_it_before_the_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for path, said in (
        (tmp_path / "x.pdf", "end it in .html, .xml (JUnit), .sarif or .md (Markdown)"),
        (tmp_path / "none" / "x.html", "create it first"),
        (tmp_path, "end it in"),
    ):
        done = command("guard", "--kinds", "fd", "--report", path, "--", "touch", ran)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        done = command("leaks", "--iterations", "1", "--report", path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not ran.exists()


def test_no_link_that_the_run_puts_there_is_followed(tmp_path: Path) -> None:
    victim, report = tmp_path / "victim", tmp_path / "r.html"
    victim.write_text("whole")
    done = command("guard", "--kinds", "fd", "--report", report, "--", "ln", "-s", victim, report)
    assert victim.read_text() == "whole"
    # What appeared there stays, and the verdict is not "clean" without a report.
    assert done.returncode == 3, done.stderr
    assert "appeared there since" in done.stderr


def test_a_report_that_cannot_be_made_hides_no_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Rows:
        raise ValueError("odd")

    with Reports([tmp_path / "r.html"]) as files:
        assert (files.write(1, broken), files.write(130, broken), files.write(0, broken)) == (1, 130, 3)
    assert not (tmp_path / "r.html").exists()
    assert "no report: ValueError: odd" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_a_campaign_writes_each_report_with_its_findings(tmp_path: Path) -> None:
    leaks = target(tmp_path, ': > "/var/lib/left-$$"; exec "$@"')
    done = command("leaks", "--target", leaks.path, "--iterations", "4", "--endings", "normal", *reports(tmp_path))
    assert done.returncode == 1, done.stderr
    html, xml, run, md = written(tmp_path)
    assert "replay: leakcheck leaks --target" in html
    (suite,) = xml
    assert (suite.attrib["name"], int(suite.attrib["failures"]) >= 1) == ("made leaks", True)
    (result,) = run["results"]
    assert str(result["partialFingerprints"]).startswith("{'leakcheckFinding/v1': 'made/leaks/")
    assert md.startswith("## leakcheck leaks made")


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_an_interrupted_campaign_passes_in_no_report(tmp_path: Path) -> None:
    made = target(tmp_path, 'exec "$@"')
    trials: list[object] = []

    class Seen(Ui):
        def made(self, trial: object, count: int) -> None:
            trials.append((trial, count))

    options = LeaksOptions(iterations=50, endings=("normal",), jobs=1)
    result = run(Leaks(), made, options, Seen(), stop=lambda: bool(trials))
    assert result.interrupted
    found = of_campaign(Result.from_json(result.to_json()))
    (suite,) = Xml.fromstring(junit(found))
    assert int(suite.attrib["errors"]) >= 1
    assert "inconclusive" in markdown(found)
    assert "interrupted" in page(found)
    assert json.loads(sarif(found))["runs"][0]["results"] == []


def test_what_too_few_submissions_decide_is_skipped_and_what_was_not_seen_is_an_error() -> None:
    fields = {"campaign": "stress", "target": "t", "version": "", "seed": 0, "wanted": 1, "trials": 1}
    fields |= {"outcomes": {}, "findings": [], "schema": "leakcheck.campaign/1"}
    pace = {"name": "submissions a minute", "pass": None, "measured": 1, "limit": 1000}

    def counts(**more: object) -> tuple[str, str]:
        found = Result.from_json(json.dumps(fields | {"criteria": [pace], "verdict": "clean"} | more))
        (suite,) = Xml.fromstring(junit(of_campaign(found)))
        return suite.attrib["errors"], suite.attrib["skipped"]

    assert counts() == ("0", "1")
    assert counts(verdict="unknown") == ("1", "0")
    assert counts(complete=False) == ("1", "0")


def plain(*criteria: Criterion, verdict: Verdict) -> Result:
    return Result(
        campaign="stress",
        target="made",
        version="",
        seed=0,
        wanted=2,
        trials=2,
        verdict=verdict,
        outcomes={},
        criteria=[*criteria],
        findings=[],
        unit="submissions",
    )


def test_code_scanning_sees_what_leaked_without_a_finding_and_that_a_run_was_not_decided() -> None:
    changed = Criterion(name="settings of the machine that changed", passed=False, measured=1, limit=0)
    (run,) = json.loads(sarif(of_campaign(plain(changed, verdict="leaked"))))["runs"]
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("criterion", "error")
    assert "settings of the machine that changed: 1, limit 0" in result["message"]["text"]
    assert "criterion" in {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]
    unseen = Criterion(name="kinds not fully seen", passed=False, measured=1, limit=0)
    (run,) = json.loads(sarif(of_campaign(plain(unseen, verdict="unknown"))))["runs"]
    (invocation,) = run["invocations"]
    assert (run["results"], invocation["executionSuccessful"]) == ([], False)
    assert "kinds not fully seen" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_what_makes_a_requirement_inconclusive_is_an_error_and_not_skipped() -> None:
    undecided = Criterion(name="slowdown, throughput", passed=None, measured={}, limit=1.2)
    result = plain(undecided, verdict="clean")
    part = PartResult(campaign="stress", status=status_of(result, strict=True), result=result)
    requirement = judged(plan_of("full")[0], [part])
    whole = Verification(
        target="made",
        version="",
        profile="full",
        seed=0,
        requirements=[requirement],
        verdict=verdict_of([requirement]),
    )
    assert whole.verdict == "unknown"
    (suite,) = Xml.fromstring(junit(of_verify(Verifications(targets=[whole]))))
    assert (suite.get("errors"), suite.get("skipped")) == ("1", "0")
    # Alone, the campaign is clean, and exits 0.
    (suite,) = Xml.fromstring(junit(of_campaign(result)))
    assert (suite.get("errors"), suite.get("skipped")) == ("0", "1")


def test_every_campaign_takes_reports() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    above = group.make_context("leakcheck", [], resilient_parsing=True)
    for name in (*CAMPAIGNS, "guard", "verify"):
        found = group.get_command(above, name)
        assert found is not None
        assert "--report" in {option for parameter in found.params for option in parameter.opts}


SUITE = """
    kept = []
    def test_leaking():
        kept.append(open("/etc/passwd"))
    def test_clean():
        pass
    def test_failing():
        assert False
"""


def test_the_plugin_writes_a_row_for_each_guarded_test(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nleakcheck_settle = 0.05\n")
    pytester.makepyfile(test_it=SUITE)
    words = [f"--leakcheck-report=r{suffix}" for suffix in SUFFIXES]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--leakcheck=fd", *words, timeout=120)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    html, xml, run, md = written(pytester.path)
    (suite,) = xml
    failing = [case.attrib["name"] for case in suite if len(case)]
    assert (failing, len(suite)) == (["test_leaking"], 3)
    (found,) = run["results"]
    place = found["locations"][0]["physicalLocation"]  # type: ignore[index]
    assert place == {"artifactLocation": {"uri": "test_it.py"}, "region": {"startLine": 3}}
    assert "/etc/passwd" in html
    assert "test\\_leaking | 1 leak | 0 |" in md


def test_the_plugin_refuses_a_report_that_it_cannot_write_before_any_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("--leakcheck-report=x.pdf", timeout=120)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*x.pdf: end it in*"])


def test_the_plugin_writes_one_report_of_all_workers(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nleakcheck_settle = 0.05\n")
    pytester.makepyfile(test_one=SUITE, test_two=SUITE)
    words = ["-n2", "--leakcheck=fd", "--leakcheck-report=r.xml"]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *words, timeout=120)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    suites = Xml.fromstring((pytester.path / "r.xml").read_text())
    assert sorted(suite.attrib["failures"] for suite in suites) == ["1", "1"]


def test_a_suite_that_guarded_nothing_or_was_cut_short_is_not_clean() -> None:
    for tests, unfinished in (([], ""), ([Guarded(nodeid="test_a.py::test_b", guarded=True)], "interrupted")):
        found = of_session("suite", tests, [], unfinished)
        assert found.subjects[0].verdict == "unknown"
        assert 'errors="1"' in junit(found)


def test_leaks_of_one_test_are_told_apart_by_kind_and_line() -> None:
    left = [Left("fd", "fd a", "test_a.py:3"), Left("fd", "fd b", "test_a.py:3"), Left("process", "process c")]
    found = of_session("suite", [Guarded(nodeid="test_a.py::test_b", left=left, guarded=True)], [], "")
    results = json.loads(sarif(found))["runs"][0]["results"]
    assert [one["properties"]["trials"] for one in results] == [2, 1]
    assert len({one["partialFingerprints"]["leakcheckFinding/v1"] for one in results}) == 2
