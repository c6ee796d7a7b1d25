"""Every target that can be run here, for real: known statuses, isolation proved, recovery after a crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from waiting import PATIENCE, runs_below, wait_until

from injectors import parse
from leakcheck.campaigns.engine import run
from leakcheck.campaigns.leaks import Leaks, LeaksOptions
from leakcheck.conformance import CHECKS, Finding, check, tried
from leakcheck.targets import Target, builtin, load

EXAMPLE = Path(__file__).parents[2] / "examples/adapter/mysandbox.toml"
# Checks that fail because of the target itself: at its wall limit it waits for whatever holds the payload's output.
KNOWN = {"inspect-ai": ["timeout"]}
# The same, where the instant of a kill decides: a payload of nspawn may outlive its supervisor, and the next is let in.
BY_CHANCE = {"nspawn": ["locks"]}
# The tries here run as root, in arenas.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_CHECK_HERE = """
import msgspec
from leakcheck.conformance import check
from leakcheck.targets import load
print(msgspec.json.encode(check(load("firejail"), ["ok", "probe"], live=True)).decode())
"""


def failures(findings: list[Finding]) -> list[str]:
    return [f"{finding.check}: {finding.detail}" for finding in findings if not finding.passed]


def ready(target: Target) -> Target:
    """Return the target; skip the test, with the reason and the way to install it, if it cannot run here."""
    state = tried(target)
    if state.state != "ready":
        pytest.skip(f"{state.state}: {state.reason}; {state.hint}")
    return target


def checks(target: Target) -> list[str]:
    declared = {"locks": target.adapter.locks is not None, "state": bool(target.adapter.damage.log)}
    return [one for one in CHECKS if declared.get(one, True)]


@pytest.mark.parametrize(
    "target",
    [pytest.param(one, marks=[pytest.mark.slow] if one.name in KNOWN else []) for one in [*builtin(), load(EXAMPLE)]],
    ids=lambda target: target.name,
)
def test_the_target_conforms(target: Target) -> None:
    findings = check(ready(target))
    failed = [finding.check for finding in findings if not finding.passed]
    by_chance = BY_CHANCE.get(target.name, [])
    assert [one for one in failed if one not in by_chance] == KNOWN.get(target.name, []), findings
    assert [finding.check for finding in findings] == checks(target)


@pytest.mark.parametrize("name", ["subprocess", "deepagents", "mini-swe-agent", "swe-rex"])
def test_what_leaves_its_payload_at_every_timeout_is_found_every_time(name: str) -> None:
    result = run(Leaks(), ready(load(name)), LeaksOptions(iterations=3, endings=["timeout"]))
    assert (result.verdict, result.outcomes) == ("leaked", {"wedged": 3})
    (finding,) = result.findings
    assert finding.trials == 3
    assert any("sleep 600" in label for one in finding.leaks if one.kind == "process" for label in one.labels)


def test_the_cgroups_that_nsjail_leaves_when_its_tree_is_killed_are_found() -> None:
    options = LeaksOptions(iterations=3, plan=parse("forced:tree@payload+0ms,sleeping"))
    result = run(Leaks(), ready(load("nsjail")), options)
    assert result.verdict == "leaked"
    labels = [label for finding in result.findings for one in finding.leaks for label in one.labels]
    assert [label for label in labels if label.startswith("cgroup ") and "/NSJAIL/NSJAIL." in label], labels


def test_the_probe_catches_firejail_where_it_drops_its_isolation() -> None:
    ready(load("firejail"))
    # A pid namespace whose process 1 does not say that it is LXC's.
    environment = {name: value for name, value in os.environ.items() if name != "container"}
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"]
    argv += [sys.executable, "-c", _CHECK_HERE]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, stdin=subprocess.DEVNULL, env=environment)
    ok, probe = msgspec.json.decode(done.stdout, type=list[Finding])
    assert ok.passed, "it says that all is well"
    assert "in the outside's pid namespace" in probe.detail


CREATE_RUN_DELETE = """
name = "three"
summary = "create, run, delete; the payload's output is in a file"
launch = ["SHOWN/run", "/run/three-{unique}", "{wall}", "{program}"]
finish = [["/bin/rmdir", "/run/three-{unique}"]]
recover = [["/bin/sh", "-c", "! [ -d $1 ] || rmdir $1", "sh", "/run/three-{unique}"]]
cwd = "{work}"
output = "{work}/out"
binds = ["SHOWN"]
state = ["/run/three-{unique}"]
status = { timeout = [124, 137] }
probe = { namespaces = ["pid"] }
"""
_RUNNER = """#!/bin/sh
mkdir "$1"; wall=$2; shift 2
exec unshare --pid --fork --kill-child timeout --kill-after=1 "$wall" "$@" >out 2>&1
"""


def three(directory: Path, old: str = "", new: str = "") -> Path:
    shown = directory / "shown"
    shown.mkdir(exist_ok=True)
    (shown / "run").write_text(_RUNNER)
    (shown / "run").chmod(0o755)
    path = directory / "three.toml"
    path.write_text(CREATE_RUN_DELETE.replace(old, new).replace("SHOWN", str(shown)))
    return path


def test_a_target_of_three_commands_with_its_output_in_a_file_conforms(tmp_path: Path) -> None:
    assert failures(check(load(three(tmp_path)))) == []


def test_what_finish_deletes_is_no_leak_and_without_it_it_is(tmp_path: Path) -> None:
    options = LeaksOptions(iterations=2, endings=["normal", "timeout"], jobs=1)
    result = run(Leaks(), load(three(tmp_path)), options)
    assert (result.verdict, result.outcomes) == ("clean", {"clean": 2})
    forgets = run(
        Leaks(), load(three(tmp_path, CREATE_RUN_DELETE.partition("finish")[2].partition("cwd")[0], " = []\n")), options
    )
    assert forgets.verdict == "leaked"


def test_a_finish_that_fails_is_no_pass(tmp_path: Path) -> None:
    fails = load(three(tmp_path, '"/bin/rmdir", "/run/three-{unique}"', '"/bin/rmdir", "/run/never"'))
    (ok,) = check(fails, ["ok"])
    assert "finish: rmdir ended with 1" in ok.detail


@pytest.mark.parametrize(
    ("launch", "recover", "failing"),
    [
        # Says OK whatever happens.
        ('["/bin/sh", "-c", "\\"$@\\"; exit 0", "sh", "/usr/bin/timeout", "1", "{program}"]', "", "timeout"),
        # Has no wall limit, but is ended by the check: it must be told, not waited for.
        ('["/bin/sh", "-c", "\\"$@\\"; exit 1", "sh", "/usr/bin/timeout", "1", "{program}"]', "", "ok"),
        ('["/usr/bin/timeout", "1", "{program}"]', 'recover = [["/bin/false"]]', "recovery"),
        ('["/usr/bin/timeout", "1", "{program}"]', "", "probe"),
    ],
)
def test_an_adapter_that_is_wrong_fails_the_check_that_it_should(
    tmp_path: Path, launch: str, recover: str, failing: str
) -> None:
    path = tmp_path / "wrong.toml"
    probe = 'probe = { namespaces = ["pid"] }\nstatus = { timeout = [124] }'
    path.write_text(f'name = "wrong"\nsummary = "x"\nlaunch = {launch}\n{recover}\n{probe}\n')
    findings = {finding.check: finding for finding in check(load(path))}
    assert not findings[failing].passed
    assert findings[failing].detail


def test_the_listing_tells_each_target_and_its_state() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", "targets", "--json"],
        stdout=subprocess.PIPE,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    listing = msgspec.json.decode(done.stdout)
    assert listing["schema"] == "leakcheck.targets/1"
    found = {entry["name"]: entry for entry in listing["targets"]}
    assert list(found) == [target.name for target in builtin()]
    assert found["command"]["state"] == "ready"
    assert "coreutils" in found["command"]["version"]
    for entry in found.values():
        assert entry["state"] in {"ready", "missing", "unable"}
        assert bool(entry["reason"]) == (entry["state"] != "ready")


def test_the_check_can_be_run_as_a_command(tmp_path: Path) -> None:
    def run(target: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "leakcheck", "check", target]
        return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    done = run(str(EXAMPLE))
    assert (done.returncode, [line.split()[:2] for line in done.stdout.splitlines()]) == (
        0,
        [["ok", c] for c in checks(load(EXAMPLE))],
    )
    assert run("docker").returncode == 2
    absent = tmp_path / "absent.toml"
    absent.write_text(EXAMPLE.read_text().replace('"timeout"]', '"timeout", "no-such-sandbox"]'))
    done = run(str(absent))
    assert done.returncode == 4
    assert "no no-such-sandbox in" in done.stderr


def test_an_adapter_may_lie_directly_in_tmp() -> None:
    path = Path(f"/tmp/leakcheck-test-{os.getpid()}.toml")
    path.write_text(EXAMPLE.read_text())
    try:
        assert failures(check(load(path), ["ok"])) == []
    finally:
        path.unlink()


def test_ctrl_c_ends_the_check_with_130_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "slow.toml"
    path.write_text(
        'name = "slow"\nsummary = "x"\nlaunch = ["/bin/sh", "-c", "sleep 6000", "{program}"]\nprobe = { none = "x" }\n'
    )
    argv = [sys.executable, "-m", "leakcheck", "check", path]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as checking:
        wait_until("the target runs", lambda: runs_below(checking.pid, ["sleep", "6000"]))
        checking.send_signal(signal.SIGINT)
        _, said = checking.communicate(timeout=PATIENCE)
    assert (checking.returncode, said) == (130, "leakcheck: interrupted: no result\n")
