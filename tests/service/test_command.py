"""The command: exit codes, the result as JSON and reports, a contract to start from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from services import STANDIN, contract

from leakcheck.campaigns.result import Result
from leakcheck.errors import UsageError
from leakcheck.service.contract import parse_contract
from leakcheck.service.draft import draft

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters an arena's network")
DOCUMENT = {
    "info": {"title": "My Judge"},
    "paths": {
        "/healthz": {"get": {}},
        "/v2/runs": {
            "get": {},
            "post": {
                "responses": {"202": {}},
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Run"}}}},
            },
        },
        "/v2/runs/{run_id}": {"get": {}, "delete": {}},
    },
    "components": {
        "schemas": {
            "Run": {
                "required": ["source", "limit"],
                "properties": {"source": {"type": "string"}, "limit": {"type": "integer"}, "note": {"type": "string"}},
            }
        }
    },
}


def leakcheck(*words: object) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "leakcheck", "service", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


@root
def test_what_passes_gives_0_and_a_result_that_reads_back(tmp_path: Path) -> None:
    xml = tmp_path / "report.xml"
    done = leakcheck("--contract", STANDIN, "--only", "S3.10,S1.6", "--settle", 0.5, "--json", "--report", xml)
    assert done.returncode == 0, done.stderr
    result = Result.from_json(done.stdout)
    assert (result.campaign, result.target, result.outcomes) == ("service", "standin", {"clean": 1})
    assert "S3.10" in xml.read_text()


@root
def test_what_leaks_gives_1_and_a_replay_line(tmp_path: Path) -> None:
    path = contract(tmp_path, "temp")
    done = leakcheck("--contract", path, "--only", "S3.10", "--settle", 0.5)
    assert done.returncode == 1
    assert "data/upload-" in done.stderr
    assert f"replay: leakcheck service --contract {path} --only S3.10 --seed 0" in done.stderr


@root
def test_a_service_that_does_not_start_gives_4(tmp_path: Path) -> None:
    path = contract(tmp_path, start=(r"start = .*", 'start = ["sh", "-c", "exit 3"]'))
    done = leakcheck("--contract", path, "--only", "S3.10")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith("leakcheck: standin: api ended with 3; it printed nothing\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "S9"], "--only S9: no such scenario; one of S1.1, S1.2"),
        (["--settle", "-1"], "--settle -1.0: give seconds from 0 to 60"),
        (["--openapi", "x.json"], "--openapi: use it as leakcheck service init"),
        (["--contract", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_wrong_option_gives_2_and_one_line(words: list[str], told: str) -> None:
    done = leakcheck("--contract", STANDIN, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert told in done.stderr


def test_a_contract_is_drafted_from_an_openapi_document(tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(DOCUMENT))
    found = parse_contract(draft(str(file)), file)
    assert (found.name, found.health.path) == ("my-judge", "/healthz")
    create = found.jobs.create
    assert (create.path, create.status, create.json) == ("/v2/runs", [202], {"source": "…", "limit": 1})
    assert found.jobs.get.path == "/v2/runs/{id}"


@pytest.mark.parametrize("text", ["[]", "{", '{"paths": 3}', '"x"'])
def test_what_is_no_openapi_document_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"openapi\.json: not"):
        draft(str(file))


def test_no_stranger_is_asked_for_a_document() -> None:
    with pytest.raises(UsageError, match="not on this machine's loopback"):
        draft("http://example.org/openapi.json")
