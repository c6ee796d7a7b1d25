"""What every report has: subjects, their parts, criteria and failures. The formats render these, whatever ran.

All text is plain and printable. Who builds a report makes it so; who renders it escapes it for its format.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from leakcheck.printable import printable
from leakcheck.report import Status, Verdict
from leakcheck.reports.figures import Figure

__all__ = ["Failure", "Group", "Part", "Report", "Row", "Subject", "cut", "decided", "lines_of"]

_LONGEST = 8_000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One criterion that has a limit, a test of a suite, or why a part has no result.

    `limit` is empty if it has none. `said` is what is to be said of it if it is not met; empty: the failures of its
    part say it. If it is `minor`, that it is inconclusive does not count: the run was too short for it.
    """

    name: str
    status: Status
    measured: str
    limit: str = ""
    said: str = ""
    minor: bool = False


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One finding that is a failure.

    `id` is the same in every run, `outcome` is its rule, `text` is it in lines, `replay` a command that shows it again.
    `file` and `line` are where a suite made it, if that is known. `evidence` are more lines, as JSON.
    """

    id: str
    outcome: str
    text: str
    replay: str = ""
    plan: str = ""
    trials: int = 1
    file: str = ""
    line: int = 0
    evidence: str = ""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What was run as one: a campaign, a guarded command, the tests of a file. `rule` is its name without its label."""

    name: str
    rule: str
    status: Status
    rows: Sequence[Row]
    failures: Sequence[Failure] = ()
    seconds: float = 0
    figures: Sequence[Figure] = ()


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Parts that decide one requirement; `tried` is how much was tried for it."""

    name: str
    status: Status
    tried: int
    parts: Sequence[Part]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return sum(part.seconds for part in self.parts)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What was tested, such as a target. `about` says how much of it in a line; `place` is a path."""

    name: str
    version: str = ""
    verdict: Verdict
    about: str = ""
    place: str
    groups: Sequence[Group]

    @property
    def title(self) -> str:
        """Its name and version."""
        return f"{self.name} {self.version}".strip()

    @property
    def parts(self) -> Iterator[Part]:
        """All of its parts."""
        for group in self.groups:
            yield from group.parts

    @property
    def failures(self) -> Iterator[tuple[Part, Failure]]:
        """All of its failures, with the part of each."""
        for part in self.parts:
            yield from ((part, one) for one in part.failures)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one `command` reports, such as ``leakcheck verify``."""

    command: str
    subjects: Sequence[Subject]


def decided(rows: Iterable[Row], status: Status, why: str) -> list[Row]:
    """Return the `rows` of a part, with one more if none of them shows its `status`: no reader takes it for a pass."""
    found = [*rows]
    if status != "pass" and all(row.status != status for row in found):
        found.append(Row(name="verdict", status=status, measured=why))
    return found


def cut(text: str, most: int = _LONGEST) -> str:
    """Return `text`, or, if it is longer than `most` characters, its beginning, and how much is missing."""
    return text if len(text) <= most else f"{text[:most]} … and {len(text) - most:,} characters more: see the JSON"


def lines_of(texts: Sequence[str]) -> str:
    """Return several texts as lines, in which nothing can control a terminal."""
    return cut("\n".join(printable(text.strip()) for text in texts))
