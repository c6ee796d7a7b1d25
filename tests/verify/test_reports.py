"""The reports of `leakcheck verify` are what their readers take, whatever names a payload chose."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from html_tags import read
from made import LEAKCHECK, WATCHES, target

from leakcheck.errors import UsageError
from leakcheck.reports import format_of, junit, markdown, page, sarif
from leakcheck.reports.of_verify import of_verify
from leakcheck.verify import Part, Requirement, Verifications, plan_of, select, verify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
# What XML, Markdown, a terminal and a CI runner would read otherwise; no byte of it is in UTF-8.
NAME = b'left <b a="1">]]>&amp;|`````\\`##[error]x\n::error::y\033[31m\377'
OCTAL = "".join(f"\\0{byte:03o}" for byte in NAME)
LEAKS = f"""{WATCHES}; : > "/var/lib/$(printf %b '{OCTAL}')-$$"; exec "$@" """


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Verifications:
    """Results of a target that leaves a file of an evil name, has no locks, and cannot be traced."""
    made = target(tmp_path_factory.mktemp("made"), LEAKS)
    normal = Requirement(id="R6", title="leaks", parts=[Part("leaks", {"iterations": 6, "endings": ("normal",)})])
    plan = [normal if one.id == "R6" else one for one in plan_of("quick")]
    return Verifications(targets=[verify(made, "quick", select(plan, ["R3", "R6", "R7"], []))])


def test_junit_has_a_suite_a_campaign_and_a_case_a_criterion(found: Verifications) -> None:
    text = junit(of_verify(found))
    top = Xml.fromstring(text)
    suites = {suite.attrib["name"]: suite for suite in top}
    assert [*suites] == ["made R3 crash normal", "made R6 leaks", "made R7 locks"]
    leaks = suites["made R6 leaks"]
    assert int(leaks.attrib["tests"]) == len(leaks) > 5
    assert int(leaks.attrib["failures"]) == len(leaks.findall("testcase/failure")) >= 1
    failure = leaks.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == "trials that left something for good: 6, limit 0"
    assert "replay: leakcheck leaks --target" in str(failure.text)
    assert '<b a="1">]]>&amp;' in str(failure.text)
    assert suites["made R7 locks"].find("testcase/skipped") is not None
    assert suites["made R3 crash normal"].find("testcase/error") is not None
    assert "\x1b" not in text


def test_sarif_has_a_result_for_each_failure_with_a_fingerprint_that_stays(found: Verifications) -> None:
    (run,) = json.loads(sarif(of_verify(found)))["runs"]
    (result,) = run["results"]
    assert result["ruleId"] in {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert result["partialFingerprints"]["leakcheckFinding/v1"].startswith("made/leaks/")
    assert result["properties"]["replay"].startswith("leakcheck leaks --target")
    assert sarif(of_verify(found)) == sarif(of_verify(Verifications.from_json(found.to_json())))


def test_markdown_shows_names_as_they_are(found: Verifications) -> None:
    lines = markdown(of_verify(found)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in table} == {6}
    assert "| R6 leaks | fail | trials that left something for good | 6 | 0 |" in table
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) == 2, lines
    assert not any(line.startswith(("::", "##[")) for line in lines)


def test_the_page_has_all_criteria_and_failures_loads_nothing_and_reads_no_name_as_markup(found: Verifications) -> None:
    seen = read(html := page(of_verify(found)))
    assert {"a", "b", "script", "img", "link", "iframe"}.isdisjoint(seen.tags)
    assert seen.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "open", "style"}
    assert "://" not in html.replace(found.targets[0].target, "")
    assert '<b a="1">]]>&amp;' in seen.text
    assert "replay: leakcheck leaks --target" in seen.text
    assert seen.tags.count("h3") == 3
    assert {"pass", "fail", "inconclusive", "not applicable"} <= {*re.findall(r">([a-z ]+)<", html)}
    assert len(html) < 2 << 20


@pytest.mark.slow  # it starts a browser
def test_a_browser_shows_the_page_without_an_error(found: Verifications, tmp_path: Path) -> None:
    if (browser := shutil.which("chromium")) is None:
        pytest.skip("no chromium: apt-get install chromium")
    (tmp_path / "page.html").write_text(page(of_verify(found)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", f"file://{tmp_path}/page.html"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = read(done.stdout)
    assert seen.tags.count("h3") == 3
    assert '<b a="1">]]>&amp;' in seen.text


def test_an_unknown_suffix_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"--report x.pdf: end it in .html, .xml \(JUnit\), .sarif or .md"):
        format_of(Path("x.pdf"))


def test_each_report_that_is_asked_for_is_written(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("r.xml", "r.sarif", "r.md")]
    reports = [word for name in names for word in ("--report", str(name))]
    command = [*LEAKCHECK, "verify", "--only", "R6", *reports]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    texts = [name.read_text() for name in names]
    assert Xml.fromstring(texts[0]).tag == "testsuites"
    assert json.loads(texts[1])["version"] == "2.1.0"
    assert texts[2].startswith("## leakcheck verify refbox")


@pytest.mark.slow  # it needs the package index
def test_junit_is_valid_by_the_public_schema(found: Verifications, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "1"]
    for words in (
        ["install", "--target", "lib", "xmlschema"],
        ["download", "--no-deps", "--no-binary", ":all:", "--dest", "sdist", "pytest==8.4.2"],
    ):
        done = subprocess.run([*pip, *words], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot get it: {done.stderr.decode().strip().splitlines()[-1]}")
    (sdist,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        member = next(one for one in archive.getmembers() if one.name.endswith("junit-10.xsd"))
        schema = archive.extractfile(member)
        assert schema is not None
        (tmp_path / "junit.xsd").write_bytes(schema.read())
    (tmp_path / "report.xml").write_text(junit(of_verify(found)))
    check = "import xmlschema; xmlschema.XMLSchema('junit.xsd').validate('report.xml')"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
