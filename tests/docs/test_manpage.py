"""The manual page is made from the help of the command, and is well formed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from leakcheck.cli import app

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man/data/share/man/man1/leakcheck.1"


@pytest.fixture(scope="module")
def page() -> str:
    words = [sys.executable, str(ROOT / "scripts/manpage")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_has_each_command_and_each_of_its_options(page: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    above = group.make_context("leakcheck", [], resilient_parsing=True)
    sections = dict(re.findall(r"^\.SS leakcheck (\S+)[^\n]*\n(.*?)(?=^\.S[SH])", page, re.MULTILINE | re.DOTALL))
    assert [*sections] == group.list_commands(above)
    for name, section in sections.items():
        command = group.get_command(above, name)
        assert command is not None
        shown = [max(param.opts, key=len) for param in command.params if not getattr(param, "hidden", False)]
        options = [option for option in shown if option.startswith("--")]
        assert [option for option in options if option.replace("-", r"\-") not in section] == []


def test_nothing_of_the_help_is_read_as_markup(page: str) -> None:
    # A line that begins with a full stop or an apostrophe is a request (groff(7)).
    requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert requests <= {'.\\"', ".TH", ".SH", ".SS", ".TP", ".B", ".BR"}


def test_groff_has_no_complaint(page: str) -> None:
    if (groff := shutil.which("groff")) is None:
        pytest.skip("no groff")
    words = [groff, "-man", "-Tutf8", "-Kutf8", "-ww", "-z"]
    done = subprocess.run(words, input=page, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow  # Quick, but no reason to refuse a change: a page that is behind by an option misleads nobody.
def test_the_page_that_is_installed_is_of_this_version(page: str) -> None:
    assert PAGE.read_text() == page, "run: make man"
