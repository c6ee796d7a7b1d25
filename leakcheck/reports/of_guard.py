"""What a guarded command left, as a report."""

import hashlib
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath

import msgspec

from leakcheck.printable import printable
from leakcheck.render import leak_lines
from leakcheck.report import Leak, Status
from leakcheck.report import Report as Found
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject, cut, decided

__all__ = ["of_guard"]

_EVIDENCE = 3_000
_STATUS: dict[str, Status] = {"clean": "pass", "leaked": "fail", "unknown": "inconclusive"}


def of_guard(found: Found) -> Report:
    """Return the report of a guarded command: a criterion is a kind, of which nothing may stay."""
    argv = found.command.argv if found.command is not None else []
    program = printable(PurePath(argv[0]).name) if argv else "command"
    status = _STATUS[found.verdict]
    failures = [
        Failure(id=_id(leak), outcome="leaked", text=cut(text), evidence=_evidence(leak))
        for leak in _staying(found)
        if (text := leak_lines([leak])[leak.key])
    ]
    part = Part(
        name="guard",
        rule="guard",
        status=status,
        rows=decided(_rows(found), status, found.verdict),
        failures=failures,
        seconds=sum(found.timing_ms.values()) / 1000,
    )
    subject = Subject(
        name=program or "command",
        verdict=found.verdict,
        about=cut(f"{printable(shlex.join(argv))}: {_end(found)}"),
        place=f"commands/{program or 'command'}",
        groups=[Group(name="guard", status=status, tried=1, parts=[part])],
    )
    return Report(command="leakcheck guard", subjects=[subject])


def _staying(found: Found) -> list[Leak]:
    # What the target's own clean-up removes does not count.
    return [leak for leak in found.leaks if leak.class_ not in ("reclaimable", "bounded")]


def _rows(found: Found) -> Iterator[Row]:
    staying = _staying(found)
    kinds = dict.fromkeys([*found.coverage, *(leak.kind for leak in staying)])
    for kind in kinds:
        count = sum(leak.kind == kind for leak in staying)
        gap = found.gaps.get(kind)
        if count or gap is None:
            yield Row(name=f"leaks of kind {kind}", status="fail" if count else "pass", measured=str(count), limit="0")
        if gap is not None:
            why = f"{gap.level}, {gap.reason or 'no reason given'}"
            yield Row(name=f"{kind} was seen in full", status="inconclusive", measured=cut(printable(why)))


def _id(leak: Leak) -> str:
    """Return what is the same of a leak in every run: without its numbers, which are mostly ids."""
    named = re.sub(r"\d+", "N", f"{leak.kind} {leak.class_} {leak.label}")
    return hashlib.sha256(named.encode("utf-8", "replace")).hexdigest()[:8]


def _evidence(leak: Leak) -> str:
    lines = msgspec.json.format(msgspec.json.encode(leak.evidence)).decode().splitlines()
    return cut("\n".join(map(printable, lines)), _EVIDENCE)


def _end(found: Found) -> str:
    code = None if found.command is None else found.command.exit
    if code is None:
        return "its end was not observed."
    return f"killed by signal {-code}." if code < 0 else f"exit {code}."
