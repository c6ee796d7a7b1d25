"""`leakcheck gate` runs what a configuration names, skips what is missing, and passes only if something passed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "leakcheck"]


def gate(directory: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Run the gate; return its exit code, the steps by name, and its page."""
    done = subprocess.run(
        [*COMMAND, "gate", "-o", "gate.json", *words],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    found = json.loads((directory / "gate.json").read_text())["steps"] if (directory / "gate.json").exists() else []
    return done.returncode, {one["name"]: one for one in found}, done.stderr


def states(steps: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["state"] for name, one in steps.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: its default target runs in arenas")
@pytest.mark.slow  # the page gate.md shows nearly the same
def test_without_a_configuration_the_default_target_is_tried(tmp_path: Path) -> None:
    code, steps, page = gate(tmp_path, "--limit", "200")
    assert states(steps) == {"configuration": "pass", "check refbox": "pass", "leaks": "pass"}, page
    assert code == 0 and "clean" in steps["leaks"]["said"] and "summary 3 pass" in page


def test_what_fails_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "leakcheck.toml").write_text('[doctor]\npreflight = ["disk", "cache"]\n[leaks]\nbogus = 1\n')
    code, steps, page = gate(tmp_path, "--skip", "check", "--only", "configuration,preflight,leaks")
    assert code == 1
    assert states(steps)["configuration"] == states(steps)["leaks"] == "fail"
    assert "unknown option" in steps["leaks"]["said"] and "line 4" in steps["leaks"]["said"]
    assert "      | " in page


def test_a_gate_in_which_nothing_could_be_tried_does_not_pass(tmp_path: Path) -> None:
    adapter = Path(__file__).parents[2] / "leakcheck/targets/adapters/nsjail.toml"
    (tmp_path / "absent.toml").write_text(adapter.read_text().replace("nsjail", "no-such-sandbox"))
    (tmp_path / "leakcheck.toml").write_text(
        'target = "absent"\n[targets]\nabsent = "absent.toml"\n[leaks]\niterations = 9\n'
    )
    code, steps, page = gate(tmp_path, "--skip", "configuration")
    assert states(steps) == {"check absent": "skip", "leaks": "skip"}, page
    assert code == 3 and "no-such-sandbox" in steps["leaks"]["said"]


def test_the_suite_of_a_project_is_a_step(tmp_path: Path) -> None:
    (tmp_path / "leakcheck.toml").write_text('[pytest]\nkinds = ["file"]\n')
    assert gate(tmp_path, "--only", "pytest")[:2][1]["pytest"]["state"] == "skip"
    (tmp_path / "test_it.py").write_text("def test_it(): assert False\n")
    code, steps, page = gate(tmp_path, "--only", "pytest")
    assert (code, states(steps)) == (1, {"pytest": "fail"}) and "1 failed" in page


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "leakcheck.toml").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text("import time\ndef test_it(): time.sleep(300)\n")
    began = time.monotonic()
    code, steps, _ = gate(tmp_path, "--only", "pytest", "--limit", "2")
    assert (code, states(steps)) == (1, {"pytest": "fail"}) and "did not end in 2 s" in steps["pytest"]["said"]
    assert time.monotonic() - began < 200


def test_a_service_that_lacks_a_program_is_skipped(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples/judge/contract.toml"
    (tmp_path / "contract.toml").write_text(example.read_text().replace('["sh"', '["no-such-program"'))
    (tmp_path / "leakcheck.toml").write_text('[service]\ncontract = "contract.toml"\nonly = "S1.2"\n')
    code, steps, page = gate(tmp_path, "--only", "service,configuration")
    assert (code, states(steps)) == (0, {"configuration": "pass", "service": "skip"}), page
    assert "no-such-program" in steps["service"]["said"]


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    code, steps, error = gate(tmp_path, "--only", "lekas")
    assert (code, steps) == (2, {}) and "lekas" in error and "configuration, check refbox, leaks" in error


def test_an_interrupted_gate_ends_its_step_and_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "leakcheck.toml").write_text("[pytest]\n")
    began = tmp_path / "began"
    (tmp_path / "test_it.py").write_text(
        f"import pathlib, time\ndef test_it(): pathlib.Path({str(began)!r}).touch(); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "gate", "--only", "configuration,pytest"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not began.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    page = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "pass" in page and "configuration" in page
