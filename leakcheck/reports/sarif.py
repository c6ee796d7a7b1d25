"""SARIF 2.1.0 (OASIS): each failure as a result, by the outcome that is its rule."""

from typing import Any

import msgspec

from leakcheck import __version__
from leakcheck.campaigns import Finding
from leakcheck.reports.rows import failures, text_of
from leakcheck.trials.outcome import FAILING
from leakcheck.verify.result import PartResult, RequirementResult, Verification, Verifications

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "leaked": "Something stays for good.",
    "silent": "A run or a recovery reports success, and something stays.",
    "wedged": "A recovery or the next submission fails.",
    "false-status": "A status is wrong.",
    "split-brain": "Two payloads are in one box at once.",
}


def sarif(found: Verifications) -> str:
    """Return the failures as SARIF.

    A sandbox has no line of code, so the place of a result is the target's name. The fingerprint is the finding's id,
    which stays the same from run to run.
    """
    results = [
        _result(target, requirement, part, finding)
        for target in found.targets
        for requirement, part, finding in failures(target)
    ]
    rules = [{"id": name, "shortDescription": {"text": _RULES.get(name, name)}} for name in sorted(FAILING)]
    driver = {"name": "leakcheck", "version": __version__, "rules": rules}
    runs = [{"tool": {"driver": driver}, "results": results}]
    return msgspec.json.format(msgspec.json.encode({"$schema": _SCHEMA, "version": "2.1.0", "runs": runs})).decode()


def _result(target: Verification, requirement: RequirementResult, part: PartResult, finding: Finding) -> dict[str, Any]:
    return {
        "ruleId": finding.outcome,
        "level": "error",
        "message": {"text": f"{target.target} {target.version}: {part.name_in(requirement.id)}\n{text_of(finding)}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": f"sandboxes/{target.target}"}},
                "logicalLocations": [{"name": target.target, "fullyQualifiedName": part.name_in(requirement.id)}],
            }
        ],
        "partialFingerprints": {"leakcheckFinding/v1": f"{target.target}/{part.campaign}/{finding.id}"},
        "properties": {"replay": finding.replay, "plan": finding.plan, "trials": finding.trials},
    }
