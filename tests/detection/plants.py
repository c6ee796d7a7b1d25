"""One planted leak: `mkleak NAME --hold`, spoken to line by line."""

import json
import os
import select
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from leakcheck._bin import helper

# mkleak answers within milliseconds; a machine under load gets this long before the run is given up.
PATIENCE_S = 20.0
UNAVAILABLE = 77


@dataclass(frozen=True)
class Plant:
    """An entry of `mkleak --list --json`."""

    name: str
    kind: str
    needs: tuple[str, ...]
    what: str


def every_plant() -> list[Plant]:
    listed = subprocess.run([helper("mkleak"), "--list", "--json"], capture_output=True, check=True, text=True)
    return [Plant(p["name"], p["kind"], tuple(p["needs"]), p["what"]) for p in json.loads(listed.stdout)]


class UnavailableError(Exception):
    """This plant cannot exist here; the message is mkleak's reason."""


class Process(Protocol):
    """A program that was started, as by `subprocess` or in an arena."""

    returncode: Any

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class Mkleak:
    """A running mkleak. Leaving the context hangs up, upon which it cleans up and ends.

    `start` starts it elsewhere than on this host: it has the parameters of `subprocess.Popen`, of them the streams.
    """

    def __init__(
        self, arguments: list[str], complaints: Path, start: Callable[..., Process] = subprocess.Popen
    ) -> None:
        self._complaints = complaints
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self._stdin, self._stdout = os.fdopen(ours_in, "wb", 0), os.fdopen(ours_out, "rb", 0)
        try:
            with complaints.open("wb") as stderr:
                command = [str(helper("mkleak")), *arguments]
                self._command = command
                self._process = start(command, stdin=theirs_in, stdout=theirs_out, stderr=stderr.fileno())
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._stdout.close()
        if error is None and self._process.returncode != 0:
            raise RuntimeError(f"mkleak ended with {self._process.returncode}: {self._said()}")

    def kill(self) -> None:
        """End mkleak so that it cannot clean up."""
        # Popen signals the child that it has not reaped, an arena through a pidfd: the pid is nobody else's.
        self._process.kill()
        self._process.wait()

    def go_on(self) -> None:
        try:
            self._stdin.write(b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"mkleak {self._command} has ended: {self._said()}") from None

    def expect(self, word: str) -> dict[str, Any]:
        """Wait for the line that begins with `word`, and return the facts behind it.

        Raises:
            UnavailableError: the plant cannot exist here.
            RuntimeError: mkleak said something else, ended, or said nothing for long.
        """
        line = self._line()
        if line is None:
            status = self._process.wait(PATIENCE_S)
            if status == UNAVAILABLE:
                raise UnavailableError(self._said())
            raise RuntimeError(f"mkleak ended with {status} before {word}: {self._said()}")
        said, _, facts = line.partition(" ")
        if said != word:
            raise RuntimeError(f"{word} expected of mkleak, not {line!r}")
        return json.loads(facts) if facts else {}

    def _line(self) -> str | None:
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._stdout], [], [], PATIENCE_S)
            if not ready:
                raise RuntimeError(f"mkleak says nothing for {PATIENCE_S} s")
            piece = self._stdout.read(65536)
            if not piece:
                return None
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def _said(self) -> str:
        return self._complaints.read_text().strip().removeprefix("mkleak: ")
