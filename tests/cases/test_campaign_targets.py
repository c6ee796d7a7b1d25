"""Targets that campaigns once judged wrongly: a survivor that forks on, and the way most home-made judges do it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

COMET = Path(__file__).parent / "inputs" / "cometbox.toml"
# subprocess.run(shell=True) ends the shell at the timeout, and not what it runs.
PYSUB = """
name = "pysub"
summary = "subprocess.run with shell=True and a timeout"
launch = ["/usr/bin/python3", "{work}/judge.py", "{wall}", "{program}"]
probe = { none = "no sandbox" }
status = { timeout = [124], internal = [125] }
[[files]]
path = "{work}/judge.py"
text = \"\"\"
import shlex, subprocess, sys
try:
    r = subprocess.run(shlex.join(sys.argv[2:]) + "; exit $?", shell=True, timeout=float(sys.argv[1]))
except subprocess.TimeoutExpired:
    sys.exit(124)
sys.exit(r.returncode if r.returncode >= 0 else 128 - r.returncode)
\"\"\"
"""


def campaign(*words: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", *words, "--settle", "0.1", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_leaks_finds_a_survivor_that_lives_on_in_ever_new_processes() -> None:
    code, result = campaign("leaks", "--target", COMET, "--plan", "normal", "--iterations", "1")
    assert (code, result["verdict"]) == (1, "leaked"), result["findings"]
    left = [one for finding in result["findings"] for one in finding["leaks"]]
    assert {"process"} == {one["kind"] for one in left if one["class"] == "respawning"}, left
    assert not any(one["class"] == "bounded" for one in left)


def test_stress_finds_such_a_survivor_and_holds_no_submission_for_clean() -> None:
    code, result = campaign(
        "stress", "--target", COMET, "--submission", "python/hello", "--submissions", "4", "--concurrency", "2"
    )
    assert (code, result["verdict"]) == (1, "leaked"), result["findings"]
    assert "clean" not in result["outcomes"], result["records"]
    assert {"respawning"} <= {one["class"] for finding in result["findings"] for one in finding["leaks"]}


def test_a_judge_that_ends_the_shell_alone_leaves_its_grandchildren_at_each_timeout(tmp_path: Path) -> None:
    (tmp_path / "pysub.toml").write_text(PYSUB)
    code, result = campaign("leaks", "--target", tmp_path / "pysub.toml", "--plan", "timeout", "--iterations", "2")
    assert (code, result["outcomes"]) == (1, {"wedged": 2}), result["findings"]
    assert {("process", "growing")} <= {(one["kind"], one["class"]) for one in result["findings"][0]["leaks"]}


def test_what_a_recovery_damages_under_guard_is_damage() -> None:
    words = ["guard", "--arena", "--recover", "chmod 0600 /etc/issue", "--", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", words[0], "--json", "--settle", "0.1", *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    leaks = [(leak["label"], leak["class"]) for leak in json.loads(done.stdout)["leaks"]]
    assert (done.returncode, leaks) == (1, [("changed file /etc/issue", "damaged")])
