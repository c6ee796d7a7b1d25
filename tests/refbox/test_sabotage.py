"""refbox without one of its protections is caught by the campaign that is meant for it; with all of them it is not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from injectors.state import state_plan
from leakcheck.campaigns import Result, State, StateOptions, run
from leakcheck.targets import Target, load

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

ROOT = Path(__file__).parents[2]
FILE = "/run/refbox/box-{box}.json"
UNNOTED = "damages that the target's log does not tell of"
# Protection → damage, and what then fails: an outcome, or the criterion about the log.
STATE = {
    "checksum": ("more=/state/intent/supervisor/pid", UNNOTED),
    "frame": ("unknown=", UNNOTED),
    "owner": ("owner=65534", UNNOTED),
    "file-type": ("directory", "wedged"),
    "set-aside": ("garbage", "wedged"),
    "one-kept": ("garbage", "silent"),
    "audit": ("garbage", UNNOTED),
    "missing": ("missing", UNNOTED),
}


@pytest.fixture(scope="module")
def sabotaged() -> Path:
    """Build refbox with the feature that no released build has, and keep it: cargo's next command builds it without."""
    words = ["cargo", "build", "--locked", "--quiet", "-p", "leakcheck-refbox", "--features", "sabotage"]
    subprocess.run(words, cwd=ROOT, check=True)
    kept = ROOT / "target/sabotage/refbox"
    kept.parent.mkdir(exist_ok=True)
    return Path(shutil.copy(ROOT / "target/debug/refbox", kept))


def without(protection: str, program: Path, tmp_path: Path) -> Target:
    text = (ROOT / "leakcheck/targets/adapters/refbox.toml").read_text()
    text = text.replace("{exe:refbox}", f"{{exe:{program}}}").replace('"refbox"]', f'"{program}"]')
    lines = text.splitlines(keepends=True)
    lines.insert(1, f'env = {{ REFBOX_SABOTAGE = "{protection}" }}\n')
    path = tmp_path / "sabotaged.toml"
    path.write_text("".join(lines))
    return load(path)


def state(target: Target, damage: str) -> Result:
    return run(State(), target, StateOptions(plan=state_plan(FILE, damage), iterations=1))


@pytest.mark.parametrize("protection", STATE)
def test_the_campaign_state_misses_the_protection(protection: str, sabotaged: Path, tmp_path: Path) -> None:
    damage, wanted = STATE[protection]
    result = state(without(protection, sabotaged, tmp_path), damage)
    assert result.failed
    assert wanted in (*result.failed, *(one.outcome for one in result.findings)), result.to_json()


def test_with_all_its_protections_the_same_build_passes(sabotaged: Path, tmp_path: Path) -> None:
    target = without("", sabotaged, tmp_path)
    for damage in {damage for damage, _ in STATE.values()}:
        assert not state(target, damage).failed, damage
