"""What GitHub Actions shows of a run, and that no name speaks to it."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from made import LEAKCHECK, target

from leakcheck.reports.github import GitHub, annotations
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject

EVIL = "x,title=y::z\n::warning::evil\r%0A::add-mask::a ##[error]b ##vso[task]c"
# What runners obey (actions/runner, ActionCommand.cs): a command of version 1 or 2 anywhere in a line.
COMMAND = re.compile(r"^\s*::|##\[|##vso\[", re.IGNORECASE)


def report(failures: int, text: str = EVIL) -> Report:
    part = Part(
        name=text,
        rule="leaks",
        status="fail",
        rows=[Row(name=text, status="fail", measured=text, limit="0")],
        failures=[Failure(id=str(n), outcome="leaked", text=text, file=text, line=n) for n in range(failures)],
    )
    groups = [Group(name=text, status="fail", tried=1, parts=[part])]
    return Report(command="leakcheck leaks", subjects=[Subject(name=text, verdict="leaked", place=text, groups=groups)])


def test_an_annotation_is_one_command_whatever_is_in_it() -> None:
    lines = [*annotations(report(2))]
    assert len(lines) == 2
    for line in lines:
        assert "\n" not in line
        assert "\r" not in line
        head, properties, message = re.fullmatch(r"(::error )([^:]*)::(.*)", line).groups()  # type: ignore[union-attr]
        assert [one.partition("=")[0] for one in properties.split(",")] == ["file", "line", "title"]
        assert not COMMAND.search(message)
        assert all(not COMMAND.search(one) for one in message.split("%0A"))
        assert head == "::error "


def test_there_are_ten_at_most_and_the_last_says_how_many_more() -> None:
    assert len([*annotations(report(10))]) == 10
    lines = [*annotations(report(25))]
    assert (len(lines), lines[-1]) == (10, "::error title=leakcheck::and 16 more failures")


def test_the_summary_is_appended_and_stays_below_what_the_runner_takes(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before\n")
    with GitHub({"GITHUB_STEP_SUMMARY": str(summary)}) as github:
        for _ in range(3):
            github.tell(report(60, "y" * 7_000))
    text = summary.read_text()
    assert text.startswith("before\n## leakcheck leaks y")
    assert (1 << 20) - 16_000 < len(text.encode()) <= 1 << 20
    assert "did not fit" in text
    assert len(re.findall("^````$", text, re.MULTILINE)) % 2 == 0


@pytest.mark.parametrize("what", ["fifo", "link", "hard link", "directory", "nothing", "null byte"])
def test_a_summary_that_is_no_plain_file_is_left_alone(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    summary, victim = tmp_path / "summary", tmp_path / "victim"
    victim.write_text("whole")
    match what:
        case "fifo":
            os.mkfifo(summary)
        case "link":
            summary.symlink_to(victim)
            os.chown(summary, 1234, 1234, follow_symlinks=False) if os.geteuid() == 0 else summary.unlink()
        case "hard link":
            summary.hardlink_to(victim)
        case "directory":
            summary.mkdir()
        case "null byte":
            summary = Path("a\0b")
    with GitHub({"GITHUB_STEP_SUMMARY": str(summary)}) as github:
        assert not github.wanted
    assert victim.read_text() == "whole"
    assert capfd.readouterr().err.startswith("leakcheck: GITHUB_STEP_SUMMARY: ")


def test_a_summary_that_the_run_replaces_is_not_followed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary, victim = tmp_path / "summary", tmp_path / "victim"
    summary.write_text("")
    victim.write_text("whole")
    with GitHub({"GITHUB_STEP_SUMMARY": str(summary)}) as github:
        summary.unlink()
        summary.symlink_to(victim)
        github.tell(report(1))
    assert victim.read_text() == "whole"
    assert "removed or linked during the run" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_a_campaign_tells_the_runner_and_keeps_its_exit_code_and_its_json(tmp_path: Path) -> None:
    leaks = target(tmp_path, ': > "/var/lib/left-$$"; exec "$@"')
    summary = tmp_path / "summary"
    summary.write_text("")
    words = ["leaks", "--target", str(leaks.path), "--iterations", "4", "--endings", "normal", "--json"]
    environment = {**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(
        [*LEAKCHECK, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith('{"campaign":"leaks"')
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("::")]
    assert line.startswith("::error title=made leaks%3A leaked::")
    assert "replay: leakcheck leaks --target" in line
    assert summary.read_text().startswith("## leakcheck leaks made")
