"""The commands that the documentation shows do what it says."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from leakcheck._native import OPERATIONS
from leakcheck.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"]
# Commands with their exit code, a file to save, and lines that the last command printed, with … for anything.
FENCE = re.compile(r"^```(sh|text|toml)(?: exit=(\d+)| file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# One in a block or in a sentence, also where it is not run.
SHOWN = re.compile(r"^(?:    )?(?:\$ )?leakcheck (?P<block>.*)$|`leakcheck (?P<sentence>[^`]+)`", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

# What the pages make outside the directory that they are tried in.
LITTER = [Path("/var/tmp/tutorial-litter")]

with_commands = [page for page in PAGES if FENCE.search(page.read_text())]


@pytest.mark.parametrize("page", with_commands, ids=lambda page: page.name)
def test_every_command_of_the_page_exits_as_the_page_says(page: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the pages are written for it")
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    printed = ""
    try:
        for language, wanted, name, content in FENCE.findall(page.read_text()):
            if name:
                (tmp_path / name).write_text(content)
            if name or language == "toml":
                continue
            lines = content.strip("\n").splitlines()
            if language == "text":
                missing = [line for line in lines if not re.search(_pattern(line), printed, re.MULTILINE)]
                assert missing == [], printed
                continue
            for command in lines:
                with (tmp_path / "output").open("w+") as output:
                    done = subprocess.run(
                        ["sh", "-c", command],
                        cwd=tmp_path,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        timeout=120,
                        check=False,
                    )
                    output.seek(0)
                    printed = output.read()
                    assert done.returncode == int(wanted or 0), f"{command}\n{printed}"
    finally:
        for path in LITTER:
            path.unlink(missing_ok=True)


def _pattern(line: str) -> str:
    return f"^{'.*'.join(map(re.escape, line.rstrip().split('…')))}$"


def test_every_command_that_a_page_shows_has_the_options_that_it_is_shown_with() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    above = group.make_context("leakcheck", [], resilient_parsing=True)
    tried = 0
    for page in PAGES:
        for shown in SHOWN.finditer(page.read_text()):
            line = " ".join((shown["block"] or shown["sentence"]).split())
            name = line.split()[0]
            if name not in group.list_commands(above):
                continue
            command = group.get_command(above, name)
            assert command is not None
            context = command.make_context(name, [], parent=above, resilient_parsing=True)
            context.resilient_parsing = False
            try:
                command.make_parser(context).parse_args(shlex.split(line, comments=True)[1:])
            except (typer.TyperException, ValueError) as error:
                pytest.fail(f"{page.name}: leakcheck {line}: {error}")
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_page_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_crash_points_has_each_operation() -> None:
    text = (ROOT / "docs/reference/crash-points.md").read_text().partition("## No points")[0]
    assert [one for one in OPERATIONS if f"`{one}`" not in text] == []
