"""The schemas that come with leakcheck are those of what it writes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made import LEAKCHECK, target

from leakcheck.schemas import SCHEMAS, generated, shipped
from leakcheck.verify import Part, Requirement, Verifications, plan_of, verify


def validate(name: str, text: str) -> dict[str, Any]:
    schema, found = json.loads(shipped(name)), json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    return dict(found)


def output(*words: str | Path) -> str:
    done = subprocess.run(
        [*LEAKCHECK, *map(str, words), "--json"] if words[0] != "guard" else [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode in (0, 1, 3), done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schema_is_the_generated_one(name: str) -> None:
    assert shipped(name) == generated(name), "run python -m leakcheck.schemas"


def test_a_guard_writes_what_the_schema_says(tmp_path: Path) -> None:
    words = ["guard", "--json", "--roots", tmp_path, "--recover", "true", "--", "sh", "-c", f": > {tmp_path}/left"]
    found = validate("report", output(*words))
    assert found["leaks"]


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
@pytest.mark.parametrize(
    "words",
    [
        ("crash", "--phase", "cleanup", "--schedule", "immediate"),
        ("faults", "--phase", "cleanup", "--iterations", "8"),
        ("stress", "--submissions", "12", "--languages", "c"),
        ("state", "--profile", "quick", "--iterations", "4"),
        ("exhaust", "--profile", "quick", "--iterations", "4"),
    ],
    ids=lambda words: words[0],
)
def test_a_campaign_writes_what_the_schema_says(words: tuple[str, ...]) -> None:
    found = validate("campaign", output(*words))
    if words[0] in ("crash", "faults"):
        assert found["points"]["map"]
        assert found["points"]["lives"]["spans"]


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_findings_and_verify_write_what_the_schemas_say(tmp_path: Path) -> None:
    leaks = target(tmp_path, ': > "/var/lib/left-$$"; exec "$@"')
    few = Requirement(id="R6", title="leaks", parts=[Part("leaks", {"iterations": 4, "endings": ("normal",)})])
    plan = [few, *(one for one in plan_of("quick") if one.id == "R7")]
    found = validate("verify", Verifications(targets=[verify(leaks, "quick", plan)]).to_json())
    parts = [part for one in found["targets"][0]["requirements"] for part in one["parts"]]
    assert [part["status"] for part in parts] == ["fail", "not applicable"]
    assert parts[0]["result"]["findings"]
    validate("campaign", json.dumps(parts[0]["result"]))


def test_the_schema_refuses_what_is_none() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate("campaign", '{"schema": "leakcheck.campaign/2"}')
    with pytest.raises(jsonschema.ValidationError):
        validate("report", '{"schema": "leakcheck.report/1", "verdict": "fine"}')
