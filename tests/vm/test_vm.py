"""leakcheck on pure cgroup v2 and on a kernel without the newer interfaces: Debian 12's 6.1, in a virtual machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from leakcheck._bin import helper

RUN = Path(__file__).with_name("run.py")
# run.py ends with it where the machine lacks what it takes.
UNAVAILABLE = 2

# What that kernel does not let anybody see, by the plant, and why; each is in docs/explanation/undetected.md.
UNDETECTED: dict[str, str] = {}
# What cannot exist there: the hierarchies of cgroup v1.
IMPOSSIBLE = {"cgroup-v1-pids", "cgroup-v1-memory", "cgroup-v1-freezer", "cgroup-v1-cpu"}
# What arenas promise beside finding each plant.
ARENAS = {
    "arena-leaves-nothing",
    "arena-passes-controllers-on",
    "arena-limit-holds",
    "arena-below-a-cgroup-without-controllers",
    "arena-guard-of-an-orphan",
    "arena-of-a-killed-warden-is-swept",
}


def machine(timeout: int, *options: str) -> str:
    """Return what the machine says."""
    done = subprocess.run(
        [sys.executable, RUN, "--timeout", str(timeout), *options, helper("mkleak"), helper("warden")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^kernel 6\.1\.", done.stdout, re.MULTILINE), done.stdout
    assert "insmod" not in done.stdout
    return done.stdout


# It makes the quick profile's 48 trials without a hardware's virtualization: minutes.
@pytest.mark.slow
def test_every_resource_is_exhausted_and_released_on_linux_6_1_with_cgroup_v2_alone() -> None:
    said = machine(580, "--exhaust")
    assert "exhaust ended with 0" in said, said
    result = json.loads(re.search(r"^result (\{.*\})$", said, re.MULTILINE)[1])  # type: ignore[index]
    assert (result["verdict"], result["complete"], result["trials"]) == ("clean", True, 48)
    assert result["outcomes"].keys() <= {"clean", "recovered"}
    # A limit of its own cgroup, in each case: what could not be set would be unknown, what does not limit is no hit.
    hit = result["exhaustion"]["hit"]
    assert set(hit["pids start"]) == {"limit=0", "limit=1"}
    assert {"full@0", "pressure=95%"} <= {*hit["memory start"]}
    assert any("quota=20%" in hit[f"cpu {moment}"] for moment in ("start", "execution"))


@pytest.mark.slow
def test_every_plant_is_found_in_arenas_too_and_real_runs_are_judged_on_linux_6_1_with_cgroup_v2_alone() -> None:
    said = machine(400)
    results = re.findall(r"^(ok|FAIL|skip) +(\S+): (.*)$", said, re.MULTILINE)
    by_word = {word: {name: why for result, name, why in results if result == word} for word in ("ok", "FAIL", "skip")}
    assert by_word["FAIL"].keys() == UNDETECTED.keys(), by_word["FAIL"]
    impossible = IMPOSSIBLE | {f"arena-{name}" for name in IMPOSSIBLE}
    assert by_word["skip"].keys() == impossible, by_word["skip"]
    assert sum(name.startswith("guard-of-") for name in by_word["ok"]) == 5
    assert by_word["ok"].keys() >= ARENAS
    assert re.search(r"^on the initial ramfs: arena: .*switch_root.*; at step ", said, re.MULTILINE), said
    passed, failed, skipped = (len(by_word[word]) for word in ("ok", "FAIL", "skip"))
    assert f"{passed} passed, {failed} failed, {skipped} skipped\nvm_check ended with 0" in said
