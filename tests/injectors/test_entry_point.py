"""An injector of somebody else's package is there once the package is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, target

INJECTOR = """
from injectors import Evidence
from injectors.timed import ended


class Full:
    kinds, may_miss = ("{kind}",), False

    def __init__(self, plan):
        self.plan = plan

    @classmethod
    def of(cls, plan):
        return cls(plan)

    def arena_options(self):
        return {{"size": 16 << 20}}

    def apply(self, trial):
        return Evidence(fired=ended(trial.supervisor, 60_000))
"""


def installed(place: Path, kind: str = "small", entry: str = "full_disk:Full") -> dict[str, str]:
    """Install a package below `place` as pip does; return the environment in which Python finds it."""
    (place / "full_disk.py").write_text(INJECTOR.format(kind=kind))
    info = place / "full_disk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: full-disk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[leakcheck.injectors]\nsmall = {entry}\n")
    return os.environ | {"PYTHONPATH": str(place)}


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_a_plan_of_its_kind_is_performed(tmp_path: Path) -> None:
    script = 'head -c 20M /dev/zero > /var/tmp/fill || mktemp /opt/full-XXXXXX; rm -f /var/tmp/fill; exec "$@"'
    made = target(tmp_path, f"({script}) 2>/dev/null")
    command = [*LEAKCHECK, "leaks", "--target", made.path, "--iterations", "1", "--json"]
    env = installed(tmp_path)

    def result(plan: str) -> Any:
        done = subprocess.run([*command, "--plan", plan], stdout=subprocess.PIPE, check=False, env=env)
        return json.loads(done.stdout)

    full, usual = result("small:16M"), result("normal")
    assert (full["endings"], usual["endings"]) == ({"small": {"leaked": 1}}, {"normal": {"clean": 1}})
    assert "/opt/full-" in str(full["findings"])
    assert "--plan small:16M" in full["findings"][0]["replay"]


@pytest.mark.parametrize(
    ("kind", "entry", "said"),
    [
        ("forced", "full_disk:Full", "plans 'forced' have two injectors: injectors.timed.Timed and full_disk.Full"),
        ("small", "full_disk:Empty", "entry point leakcheck.injectors: small = full_disk:Empty: module"),
    ],
)
def test_one_that_cannot_be_used_is_named(kind: str, entry: str, said: str, tmp_path: Path) -> None:
    parse = [sys.executable, "-c", "import injectors; injectors.parse('normal')"]
    done = subprocess.run(parse, env=installed(tmp_path, kind, entry), capture_output=True, text=True, check=False)
    assert f"UsageError: entry point leakcheck.injectors: small = {entry}: " in done.stderr
    assert said in done.stderr
