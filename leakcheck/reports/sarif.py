"""SARIF 2.1.0 (OASIS): each failure as a result, by the outcome that is its rule."""

from collections.abc import Iterator
from typing import Any

import msgspec

from leakcheck import __version__
from leakcheck.reports.rows import Failure, Part, Report, Subject

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_CRITERION = "criterion"
_RULES = {
    _CRITERION: "A criterion is not met.",
    "false-status": "A status is wrong.",
    "leaked": "Something stays for good.",
    "silent": "A run or a recovery reports success, and something stays.",
    "split-brain": "Two payloads are in one box at once.",
    "wedged": "A recovery or the next submission fails.",
}


def sarif(found: Report) -> str:
    """Return the failures as SARIF.

    A part that fails without such a failure has one result that names its criteria. What is not decided is no result:
    then the invocation is not successful, and says why (section 3.20 of the standard).

    A sandbox has no line of code, so the place of a result is the target's name; that of a test is its line. The
    fingerprint is the finding's id, which stays the same from run to run.
    """
    results = [_result(subject, part, one) for subject in found.subjects for part, one in _failures(subject)]
    rules = [
        {"id": name, "shortDescription": {"text": _RULES.get(name, name)}}
        for name in sorted({*_RULES, *(one["ruleId"] for one in results)})
    ]
    driver = {"name": "leakcheck", "version": __version__, "rules": rules}
    notes = [
        {"level": "error", "message": {"text": f"{subject.name} {part.name}: {row.name}: {row.measured}"}}
        for subject in found.subjects
        for part in subject.parts
        for row in part.rows
        if row.status == "inconclusive" and not row.minor
    ]
    invocation = {"executionSuccessful": not notes, "toolExecutionNotifications": notes}
    runs = [{"tool": {"driver": driver}, "invocations": [invocation], "results": results}]
    return msgspec.json.format(msgspec.json.encode({"$schema": _SCHEMA, "version": "2.1.0", "runs": runs})).decode()


def _failures(subject: Subject) -> Iterator[tuple[Part, Failure]]:
    """Yield all failures, and one for each part that fails without any, such as for a setting that changed."""
    for part in subject.parts:
        yield from ((part, one) for one in part.failures)
        failing = [row for row in part.rows if row.status == "fail"]
        if failing and not part.failures:
            said = "\n".join(f"{row.name}: {row.measured}{f', limit {row.limit}' * bool(row.limit)}" for row in failing)
            yield part, Failure(id=_CRITERION, outcome=_CRITERION, text=said)


def _result(subject: Subject, part: Part, failure: Failure) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(failure.file or subject.place)}}
    if failure.line:
        place["region"] = {"startLine": failure.line}
    return {
        "ruleId": failure.outcome,
        "level": "error",
        "message": {"text": f"{subject.name} {subject.version}: {part.name}\n{failure.text}"},
        "locations": [
            {
                "physicalLocation": place,
                "logicalLocations": [{"name": subject.name, "fullyQualifiedName": part.name}],
            }
        ],
        "partialFingerprints": {"leakcheckFinding/v1": f"{subject.name}/{part.rule}/{failure.id}"},
        "properties": {"replay": failure.replay, "plan": failure.plan, "trials": failure.trials},
    }


def _uri(path: str) -> str:
    """Return a path as a relative reference (RFC 3986)."""
    kept = "-._~/"
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in kept) else f"%{byte:02X}"
        for byte in path.encode("utf-8", "replace")
    )
