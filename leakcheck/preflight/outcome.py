"""What a check found (`Outcome`), and how it runs programs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["pass", "skip", "fail"]
LONGEST = 30.0
"""Seconds that a program of a check may take."""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a check: what was found, and for what is skipped or fails the steps that mend it."""

    check: str
    step: str
    state: State
    found: str
    fix: list[str] = []


class Ran(msgspec.Struct, frozen=True):
    """How a program ended: its exit code (None if it was too slow or could not be started), and what it wrote."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def why(self) -> str:
        """The last line of its messages, or how it ended."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else f"exit {self.code}"


def ran(command: Sequence[str | Path], directory: Path, seconds: float = LONGEST) -> Ran:
    """Run a program in a directory and return how it ended; it is killed after so many seconds."""
    out, messages = directory / ".stdout", directory / ".stderr"
    code = None
    try:
        # Into files: a pipe would be waited for as long as some grandchild holds it.
        with out.open("wb") as stdout, messages.open("wb") as stderr:
            code = subprocess.run(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                timeout=seconds,
                check=False,
            ).returncode
        texts = [path.read_text(errors="replace") for path in (out, messages)]
    except subprocess.TimeoutExpired:
        texts = ["", f"no end in {seconds:g} s"]
    except OSError as error:
        texts = ["", str(error)]
    return Ran(code, *texts)
