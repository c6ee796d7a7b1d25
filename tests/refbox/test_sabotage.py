"""refbox without one of its protections is caught by the campaign that is meant for it; with all of them it is not."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sabotages import DISTRUSTED, FILE, PAGE, SABOTAGES, Sabotage, section

from injectors import parse
from leakcheck._bin import helper
from leakcheck.campaigns import CAMPAIGNS, Result, run
from leakcheck.targets import Target, load
from leakcheck.trials.power import cuts
from leakcheck.trials.state_history import record_history

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


@pytest.fixture(scope="module")
def sabotaged() -> Path:
    """Return a debug build of refbox: a release build lacks no protection."""
    built = ROOT / "target/debug/refbox"
    sources = [path for crate in ("refbox", "parse", "sys") for path in (ROOT / "rust" / crate / "src").rglob("*.rs")]
    # `cargo test` has built it, with features of dependencies that a build of this package alone would build again.
    if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        subprocess.run(["cargo", "build", "--locked", "--quiet", "-p", "leakcheck-refbox"], cwd=ROOT, check=True)
    return built


def without(protection: str, program: Path, tmp_path: Path) -> Target:
    text = (ROOT / "leakcheck/targets/adapters/refbox.toml").read_text()
    text = text.replace("{exe:refbox}", f"{{exe:{program}}}").replace('"refbox"]', f'"{program}"]')
    lines = text.splitlines(keepends=True)
    lines.insert(1, f'env = {{ REFBOX_SABOTAGE = "{protection}" }}\n')
    path = tmp_path / "sabotaged.toml"
    path.write_text("".join(lines))
    return load(path)


def trial(target: Target, campaign: str, plan: str) -> Result:
    made = CAMPAIGNS[campaign]
    plans: dict[str, Any] = {"plan": parse(plan)} if plan else {}
    return run(made, target, made.options(iterations=1, **plans))


@needs_root
@pytest.mark.parametrize("row", SABOTAGES, ids=lambda row: f"{row.campaign}-{row.protection}")
def test_the_campaign_misses_the_protection(row: Sabotage, sabotaged: Path, tmp_path: Path) -> None:
    result = trial(without(row.protection, sabotaged, tmp_path), row.campaign, row.plan)
    assert result.failed
    assert row.fails in (*result.failed, *(one.outcome for one in result.findings)), result.to_json()


@needs_root
def test_a_release_build_lacks_no_protection(tmp_path: Path) -> None:
    row = SABOTAGES[0]
    assert not trial(without(row.protection, helper("refbox"), tmp_path), row.campaign, row.plan).failed


@needs_root
@pytest.mark.slow  # Half a minute for what the tests of refbox itself show of a release build.
def test_with_all_its_protections_the_same_build_passes(sabotaged: Path, tmp_path: Path) -> None:
    target = without("", sabotaged, tmp_path)
    for campaign, plan in dict.fromkeys((row.campaign, row.plan) for row in SABOTAGES):
        assert not trial(target, campaign, plan).failed, plan


@needs_root
def test_without_fsync_a_power_cut_leaves_a_state_that_refbox_does_not_trust(sabotaged: Path, tmp_path: Path) -> None:
    target = without("fsync", sabotaged, tmp_path)
    left = cuts(target, record_history(target, lambda: False), FILE)
    (empty, *_) = [
        str(plan) for plan, cut in left.items() if (at := cut.disk.get("/run/refbox/box-0.json")) and not at.content
    ]
    result = trial(target, "state", empty)
    assert result.failed == [DISTRUSTED]
    assert "it does not trust the state that it wrote itself" in " ".join(one.detail for one in result.findings)


def test_the_page_has_the_table_of_all_protections() -> None:
    assert "\n".join(section()) in PAGE.read_text(), "write it with: python tests/refbox/sabotages.py"


def test_each_row_is_a_protection_that_refbox_can_lack() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "rust/refbox/src").rglob("*.rs")))
    can_lack = {part.partition('"')[0] for part in text.split('removed("')[1:]}
    assert {row.protection for row in SABOTAGES} <= can_lack
