"""`leakcheck init` writes an adapter that can be checked at once, and overwrites nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leakcheck.conformance import check
from leakcheck.submissions import BUILTIN
from leakcheck.targets import Box, load


def init(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leakcheck", "init", *words]
    return subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


def test_without_a_command_it_is_valid_and_says_what_to_do(tmp_path: Path) -> None:
    done = init(tmp_path, "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "wrote mine.toml; put your sandbox's command line in its launch",
        "next: leakcheck check ./mine.toml",
    ]
    assert load(tmp_path / "mine.toml").adapter.launch == ["/usr/bin/timeout", "--kill-after=1", "{wall}", "{program}"]


def test_paths_become_absolute_and_what_an_arena_would_hide_is_bound(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("")
    (tmp_path / "run").mkdir()
    done = init(tmp_path, "mine", "--", "python3", "judge.py", "run", "--limit={wall}", "{program}", 'a "b" \\ \x7f')
    assert done.returncode == 0, done.stderr
    adapter = load(tmp_path / "mine.toml").adapter
    script = str(tmp_path / "judge.py")
    assert adapter.launch == ["{exe:python3}", script, "run", "--limit={wall}", "{program}", 'a "b" \\ \x7f']
    assert (adapter.needs.binaries, adapter.status.timeout) == (["python3"], [])
    assert adapter.binds == ([str(tmp_path)] if script.startswith(("/tmp/", "/run/", "/var/tmp/")) else [])


def test_a_path_may_have_spaces_quotes_and_braces(tmp_path: Path) -> None:
    directory = tmp_path / "my {work} 'x'"
    directory.mkdir()
    (directory / "judge").write_text("#!/bin/sh\n")
    (directory / "judge").chmod(0o755)
    assert init(directory, "mine", "./judge", "./judge", "{program}").returncode == 0
    launch = load(directory / "mine.toml").launch(BUILTIN["ok"], Box(number=0, work=tmp_path))
    assert launch.argv[:2] == [str(directory / "judge")] * 2


def test_a_program_given_by_path_is_one_that_the_adapter_needs(tmp_path: Path) -> None:
    (tmp_path / "judge").write_text("#!/bin/sh\n")
    (tmp_path / "judge").chmod(0o755)
    assert init(tmp_path, "in/mine.toml", "./judge").returncode == 2, "there is no such directory"
    assert init(tmp_path, "mine", "./judge", "--wall", "{wall}").returncode == 0
    adapter = load(tmp_path / "mine.toml").adapter
    assert adapter.launch == [str(tmp_path / "judge"), "--wall", "{wall}", "{program}"]
    assert adapter.needs.binaries == [str(tmp_path / "judge")]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["old"], "old.toml exists, and is not overwritten"),
        (["My Box"], "'My Box': give a name of lower-case letters"),
        (["box.yaml/"], "give a name"),
        (["bwrap"], "bwrap is built in: run leakcheck check bwrap"),
        (["new", "--", "no-such-judge"], "run no-such-judge: no such command on PATH; give its path"),
        (["new", "--", "./old.toml"], "run ./old.toml: not executable"),
        (["new", "--", "./none"], "run ./none: no such file"),
        (["new", "--", "sh", "-c", "f() { g; }; f"], "unknown placeholder { g; }; allowed here: {box}"),
        (["new", "--", "sh", "--run={program}"], "{program} must be an element of its own"),
        (["new", "--", "sh", os.fsdecode(b"\xff")], "not valid UTF-8"),
        (["none/new.toml"], "write none/new.toml: no such file or directory"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, words: list[str], complaint: str) -> None:
    (tmp_path / "old.toml").write_text("mine")
    done = init(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert complaint in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.toml", "mine")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the check runs in an arena")
def test_an_adapter_for_a_command_passes_the_check_at_once(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    assert init(tmp_path, "mine", "--", *command).returncode == 0
    assert [found for found in check(load(tmp_path / "mine.toml")) if not found.passed] == []
