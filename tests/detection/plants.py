"""One planted leak: `mkleak NAME --hold`, spoken to line by line."""

import json
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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


class Mkleak:
    """A running mkleak. Leaving the context hangs up, upon which it cleans up and ends."""

    def __init__(self, arguments: list[str], complaints: Path) -> None:
        self._complaints = complaints
        with complaints.open("wb") as stderr:
            self._process = subprocess.Popen(
                [helper("mkleak"), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._process.stdout.close()
        if error is None and self._process.returncode != 0:
            raise RuntimeError(f"mkleak ended with {self._process.returncode}: {self._said()}")

    def kill(self) -> None:
        """End mkleak so that it cannot clean up."""
        # Popen signals the child that it has not reaped: the pid is nobody else's.
        self._process.kill()
        self._process.wait()

    def go_on(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"\n")

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
        assert self._process.stdout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
            if not ready:
                raise RuntimeError(f"mkleak says nothing for {PATIENCE_S} s")
            piece = self._process.stdout.read(65536)
            if not piece:
                return None
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def _said(self) -> str:
        return self._complaints.read_text().strip().removeprefix("mkleak: ")
