"""What the tests of a suite left, as a report: a part for each file, a row for each guarded test."""

import hashlib
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from leakcheck.printable import printable
from leakcheck.render import count
from leakcheck.report import Status, Verdict
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject, cut, lines_of

__all__ = ["Guarded", "Left", "of_session"]

_WORST: tuple[Status, ...] = ("not applicable", "pass", "inconclusive", "fail")
_VERDICTS: dict[Status, Verdict] = {"pass": "clean", "fail": "leaked"}


class Left(msgspec.Struct, frozen=True):
    """One leak of a test: its kind, a line about it, and the line of the suite that made it, if that is known."""

    kind: str
    line: str
    made_at: str = ""


class Guarded(msgspec.Struct, kw_only=True):
    """A guarded test: what it left, and why that is not known. `seconds` is how long it took with its fixtures."""

    nodeid: str
    left: list[Left] = []
    unknown: list[str] = []
    failed: bool = False
    seconds: float = 0
    guarded: bool = False

    @property
    def status(self) -> Status:
        """Whether it left something, whatever the test itself came to."""
        return "fail" if self.left else "inconclusive" if self.unknown else "pass"


def of_session(suite: str, tests: Sequence[Guarded], unattributed: Sequence[str], unfinished: str) -> Report:
    """Return the report of a suite of this name.

    `unattributed` is what no test can be blamed for; `unfinished` why not all tests ran, empty if they did.
    """
    parts = [*_parts([one for one in tests if one.guarded])]
    if unattributed:
        rows = [Row(name="not tied to a test", status="not applicable", measured=cut(one)) for one in unattributed]
        parts.append(Part(name="not tied to a test", rule="pytest", status="not applicable", rows=rows))
    if unfinished or not parts:
        why = unfinished or "no test was guarded"
        row = Row(name="all tests were guarded to their end", status="inconclusive", measured=printable(why))
        parts.append(Part(name="session", rule="pytest", status="inconclusive", rows=[row]))
    worst = max((part.status for part in parts), key=_WORST.index)
    guarded = sum(one.guarded for one in tests)
    subject = Subject(
        name=printable(suite),
        verdict=_VERDICTS.get(worst, "unknown"),
        about=f"{count(guarded, 'guarded test')}; a row is what a test left, whatever else it came to.",
        place=".",
        groups=[Group(name="tests", status=worst, tried=guarded, parts=parts)],
    )
    return Report(command="leakcheck pytest", subjects=[subject])


def _parts(tests: Sequence[Guarded]) -> Iterator[Part]:
    files: dict[str, list[Guarded]] = {}
    for one in tests:
        files.setdefault(one.nodeid.partition("::")[0], []).append(one)
    for file, of_file in files.items():
        yield Part(
            name=printable(file),
            rule="pytest",
            status=max((one.status for one in of_file), key=_WORST.index),
            rows=[_row(one) for one in of_file],
            failures=[failure for one in of_file for failure in _failures(one)],
            seconds=sum(one.seconds for one in of_file),
        )


def _row(one: Guarded) -> Row:
    also = "; the test failed" if one.failed else ""
    name = printable(one.nodeid.partition("::")[2] or one.nodeid)
    said = lines_of([left.line for left in one.left] or one.unknown)
    match one.status:
        case "fail":
            return Row(name=name, status="fail", measured=f"{count(len(one.left), 'leak')}{also}", limit="0", said=said)
        case "inconclusive":
            return Row(name=name, status="inconclusive", measured=f"{cut(said, 500)}{also}", said=said)
        case _:
            return Row(name=name, status="pass", measured=f"0 leaks{also}", limit="0")


def _failures(one: Guarded) -> Iterator[Failure]:
    """Yield a failure for each kind, and line of the suite that made it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for left in one.left:
        groups.setdefault((left.kind, left.made_at), []).append(left.line)
    for (kind, made_at), lines in groups.items():
        file, _, line = made_at.rpartition(":")
        known = line.isdecimal()
        yield Failure(
            id=hashlib.sha256(f"{one.nodeid} {kind} {file}".encode("utf-8", "replace")).hexdigest()[:8],
            outcome="leaked",
            text=lines_of([one.nodeid, *lines]),
            replay=printable(shlex.join(["pytest", "--leakcheck", one.nodeid])),
            trials=len(lines),
            file=file if known else one.nodeid.partition("::")[0],
            line=int(line) if known else 0,
        )
