"""The services of examples/services, where `make targets-services` has installed them: what they are found to do."""

import os
from pathlib import Path

import pytest
from services import tried

from leakcheck.service import load_contract

ROOT = Path(__file__).parents[2]
# Service → the rows that pass, and those that fail, with what is said of each.
FOUND = {
    "jupyter": (
        ("S1.3", "S1.4", "S2.6", "S3.6", "S3.8", "S3.12"),
        {"S1.5": "runtime/kernel-", "S3.1": "a list: 500"},
    ),
    "celery": (
        ("S1.2", "S3.10"),
        {"S2.6": "(sleep): sleep 25", "S2.7": "still STARTED"},
    ),
}
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters an arena's network"),
    pytest.mark.slow,  # they take seconds to start, for each scenario: a minute and a half each
]


def _installed(service: str) -> Path:
    path = ROOT / "examples/services" / service / "contract.toml"
    if missing := load_contract(path).missing(path):
        pytest.skip(f"needs {', '.join(missing)}: make targets-services")
    return path


@pytest.mark.parametrize("service", FOUND)
def test_what_passes_passes_and_what_is_found_is_found(service: str) -> None:
    passing, failing = FOUND[service]
    result = tried(_installed(service), *passing, *failing)
    told = {one.name.split()[0]: one for one in result.criteria}
    assert {row: one.measured for row, one in told.items() if one.passed is None} == {}
    assert {row: one.measured for row, one in told.items() if one.passed and row not in passing} == {}
    assert {row: one.measured for row, one in told.items() if not one.passed and row not in failing} == {}
    assert {row: words for row, words in failing.items() if words not in told[row].measured["why"]} == {}
