"""Inputs that leakcheck once judged wrongly: each is a small program in ``inputs``, run as its users would run it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

INPUTS = Path(__file__).parent / "inputs"
CASE = f"case-{os.getpid()}"
"""Begins the names outside of temporary directories, and is $CASE: another suite on this machine has other ones."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `exits` are the numbers that it printed as ``exit N``, one for each leakcheck that it ran."""

    code: int
    text: str

    @property
    def exits(self) -> list[int]:
        return [int(number) for number in re.findall(r"exit (\d+)", self.text)]


@pytest.fixture(autouse=True)
def where_an_arena_has_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the working directory one that an arena has, wherever the checkout lies: it has a /tmp of its own."""
    monkeypatch.chdir("/")
    monkeypatch.setenv("CASE", CASE)


def run(argv: Sequence[str | os.PathLike[str]], directory: Path, timeout: float = 60) -> Outcome:
    """Run a command with leakcheck on PATH; its output goes through a file, so that what it leaves holds no pipe."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    output = directory / "output"
    with output.open("wb") as stream:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=env,
            timeout=timeout,
            check=False,
        )
    return Outcome(done.returncode, output.read_text("utf-8", "backslashreplace"))


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Outcome]:
    """Run an argv, in which ``{NAME}`` is the path of an input."""

    def call(*argv: str, timeout: float = 60) -> Outcome:
        return run([re.sub(r"\{([\w.]+)\}", lambda m: str(INPUTS / m[1]), word) for word in argv], tmp_path, timeout)

    return call


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile an input in C."""

    def build(name: str) -> Path:
        program = tmp_path_factory.mktemp("case") / Path(name).stem
        subprocess.run(["cc", "-O1", "-pthread", "-o", program, INPUTS / name], check=True)
        return program

    return build
