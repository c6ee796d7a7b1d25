"""A campaign's result reads back, also one that was written with the old words."""

import json
import warnings
from typing import Any

import pytest

from leakcheck.campaigns.result import Result
from leakcheck.errors import UsageError
from leakcheck.renamed import RenamedWarning

NEW: dict[str, Any] = {
    "schema": "leakcheck.campaign/1",
    "campaign": "leaks",
    "target": "made",
    "version": "",
    "seed": 1,
    "wanted": 2,
    "trials": 2,
    "verdict": "unknown",
    "outcomes": {"recovered": 1, "false-status": 1},
    "endings": {"forced": {"recovered": 1, "false-status": 1}},
    "criteria": [],
    "findings": [
        {"id": "1", "ending": "forced", "plan": "x", "outcome": "recovered", "leaks": [], "trials": 1, "replay": "y"}
    ],
    "timing_ms": {"up": 1.5},
    "report": {"schema": "leakcheck.report/1"},
}


def test_a_result_reads_back() -> None:
    with warnings.catch_warnings(action="error"):
        campaign = Result.from_json(json.dumps(NEW))
        assert Result.from_json(campaign.to_json()) == campaign
    assert json.loads(bytes(campaign.report)) == NEW["report"]


def test_a_result_of_the_old_words_is_read_with_warnings_that_name_the_new_ones() -> None:
    old = json.dumps(NEW)
    for new, word in (("recovered", "reclaimed"), ("false-status", "wrong"), ("timing_ms", "phases_ms")):
        old = old.replace(f'"{new}"', f'"{word}"')
    with pytest.warns(RenamedWarning) as warned:
        assert Result.from_json(old, "old.json") == Result.from_json(json.dumps(NEW))
    said = {str(one.message) for one in warned}
    assert {
        "old.json: phases_ms is now called timing_ms",
        "old.json: findings: reclaimed is now called recovered",
    } <= said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "leakcheck.report/1"}', json.dumps(NEW)[:-9], "\xff"])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"campaign: "):
        Result.from_json(text)


@pytest.mark.parametrize("name", [name for name in NEW if name != "report"])
def test_a_field_of_another_type_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"campaign: "):
        Result.from_json(json.dumps(NEW | {name: [[7]]}))
