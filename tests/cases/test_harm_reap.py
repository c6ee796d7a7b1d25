"""`reap` removes what the run made, and never what was there before it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.cases.conftest import CASE

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="who made a file is known to root only: fanotify wants CAP_SYS_ADMIN"
)

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def leakcheck(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leakcheck", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory like /tmp, in which another user may make links."""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    return tmp_path / "shared"


@pytest.fixture
def guarded(place: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Guard a command and return its report, which lies in `report.json`."""

    def guard(*command: object) -> dict[str, Any]:
        report = tmp_path / "report.json"
        options = ("--kinds", "file", "--roots", place, "--settle", "0.05")
        done = leakcheck("guard", *options, "-o", report, "--", *command)
        assert done.returncode in (0, 1), done.stderr
        loaded: dict[str, Any] = json.loads(report.read_text())
        # Below a first pid namespace whose maker has ended, nothing tells who made a file.
        for leak in loaded["leaks"]:
            leak["attribution"] = "creator"
        report.write_text(json.dumps(loaded))
        return loaded

    return guard


def reap(report: Path) -> list[dict[str, str]]:
    done = leakcheck("reap", "--diff", report, "--yes", "--json")
    assert done.returncode in (0, 1), done.stderr
    actions: list[dict[str, str]] = json.loads(done.stdout)
    return actions


def paths(report: dict[str, Any]) -> list[str]:
    return sorted(Path(leak["evidence"]["resource"]["path"]).name for leak in report["leaks"])


def grow_old() -> None:
    """Wait until the clock that births are compared with has ticked; it does every 10 ms at most (clock_getres(2))."""
    time.sleep(0.02)


def test_the_case_of_a_hard_link_keeps_roots_file(case: Callable[..., Any]) -> None:
    done = case("sh", "{hardlink.sh}")
    assert "exit 1  (right" in done.text
    assert f"file /tmp/{CASE}-links/aaa" in done.text
    assert "data\nright: root's file is still there" in done.text


@pytest.mark.skipif(
    Path("/root").exists() and Path("/root").stat().st_dev != Path("/tmp").stat().st_dev,
    reason="mv copies between file systems: the run itself makes a new file and removes the old one",
)
def test_the_case_of_a_moved_file_keeps_the_only_copy(case: Callable[..., Any]) -> None:
    done = case("sh", "{moved.sh}")
    assert "precious\nright: still there" in done.text


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_of_a_file_with_a_new_name_the_new_name_is_the_leak_and_goes(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    old = place / "mmm"
    old.write_text("data")
    old.chmod(0o666)
    grow_old()
    assert paths(guarded(*AS_NOBODY, "ln", old, place / name)) == [name]
    actions = reap(tmp_path / "report.json")
    assert [action["status"] for action in actions] == ["done"]
    assert [entry.name for entry in place.iterdir()] == ["mmm"]


def test_a_new_name_stays_when_it_has_become_the_only_one(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (place / "mmm").write_text("data")
    grow_old()
    guarded("ln", place / "mmm", place / "aaa")
    (place / "mmm").unlink()
    assert [action["status"] for action in reap(tmp_path / "report.json")] == ["skipped"]
    assert (place / "aaa").read_text() == "data"


def test_a_directory_with_an_old_tree_that_the_run_moved_stays(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "old" / "deep" / "file").write_text("precious")
    grow_old()
    assert paths(guarded("mv", tmp_path / "old", place / "old")) == ["deep", "file", "old"]
    reap(tmp_path / "report.json")
    assert (place / "old/deep/file").read_text() == "precious"


def test_a_name_that_the_run_gave_to_another_file_stays(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (place / "settings").write_text("a=1")
    guarded("sed", "-i", "s/1/2/", place / "settings")
    for action in reap(tmp_path / "report.json"):
        assert action["status"] == "skipped", action
    assert (place / "settings").read_text() == "a=2"


Tamper = Callable[[dict[str, Any], Path, Path], None]


def another_inode(resource: dict[str, Any], _place: Path, victim: Path) -> None:
    resource["ino"] = victim.stat().st_ino


def another_path(resource: dict[str, Any], _place: Path, victim: Path) -> None:
    resource["path"] = str(victim)


def a_way_up(resource: dict[str, Any], place: Path, victim: Path) -> None:
    resource["path"] = f"{place}/../{victim.name}"
    resource["ino"] = victim.stat().st_ino


def through_a_link(resource: dict[str, Any], place: Path, victim: Path) -> None:
    (place / "link").symlink_to(victim.parent)
    resource["path"] = f"{place}/link/{victim.name}"
    resource["ino"] = victim.stat().st_ino


def a_relative_path(resource: dict[str, Any], _place: Path, victim: Path) -> None:
    resource["path"] = os.path.relpath(victim)


@pytest.mark.parametrize("tamper", [another_inode, another_path, a_way_up, through_a_link, a_relative_path])
def test_a_report_that_was_tampered_with_removes_nothing(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path, tamper: Tamper
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    report = guarded("touch", place / "left")
    (leak,) = report["leaks"]
    resource = leak["evidence"]["resource"]
    tamper(resource, place, victim)
    seconds = resource["dev"] >> 32, resource["dev"] & 0xFFFFFFFF
    for birth in (resource["birth"], None):
        resource["birth"] = birth
        shown = "?" if birth is None else birth
        leak["key"] = f"file:{seconds[0]}:{seconds[1]}:{resource['ino']}@{shown}#{resource['link']}"
        (tmp_path / "report.json").write_text(json.dumps(report))
        assert all(action["status"] != "done" for action in reap(tmp_path / "report.json"))
    assert victim.read_text() == "precious"
    assert (place / "left").exists()


def test_what_has_become_a_link_a_directory_or_a_mount_point_stays(
    place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    names = ("link", "directory")
    guarded("touch", *(place / name for name in names))
    for name in names:
        (place / name).unlink()
    (tmp_path / "victim").write_text("precious")
    (place / "link").symlink_to(tmp_path / "victim")
    (place / "directory").mkdir()
    assert {action["status"] for action in reap(tmp_path / "report.json")} == {"gone"}
    assert (tmp_path / "victim").exists()
    assert (place / "link").is_symlink()
    assert (place / "directory").is_dir()


@pytest.fixture
def foreign(place: Path, guarded: Callable[..., dict[str, Any]], tmp_path: Path) -> Generator[Path, None, None]:
    guarded("touch", place / "left")
    yield tmp_path / "report.json"
    assert (place / "left").exists()


def test_a_report_of_another_user_is_refused(foreign: Path) -> None:
    os.chown(foreign, 65534, 65534)
    done = leakcheck("reap", "--diff", foreign, "--yes")
    assert done.returncode == 2
    assert "belongs to uid 65534" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_that_anybody_can_write_is_refused(foreign: Path) -> None:
    foreign.chmod(0o666)
    done = leakcheck("reap", "--diff", foreign, "--yes")
    assert done.returncode == 2
    assert "is writable by everyone" in done.stderr


def test_a_report_that_does_not_say_when_its_run_began_removes_no_file(foreign: Path) -> None:
    report = json.loads(foreign.read_text())
    del report["baseline_ns"]
    foreign.write_text(json.dumps(report))
    assert [action["status"] for action in reap(foreign)] == ["skipped"]


@pytest.fixture
def cgroup() -> Generator[Path, None, None]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not places or not (places[0] / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    made = places[0] / f"{CASE}-scope"
    made.mkdir()
    yield made
    made.rmdir()


def test_a_process_from_before_the_run_that_was_moved_into_its_scope_stays(cgroup: Path, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as old:
        try:
            report, move = tmp_path / "report.json", f"echo {old.pid} > {cgroup}/cgroup.procs"
            options = ("--scope", f"cgroup:{cgroup}", "--kinds", "process", "--settle", "0.05", "-o", report)
            done = leakcheck("guard", *options, "--", "sh", "-c", move)
            assert done.returncode == 1, done.stderr
            assert [action["status"] for action in reap(report)] == ["skipped"]
            assert old.poll() is None
        finally:
            old.kill()


def test_a_mount_that_only_the_scope_ties_to_the_run_stays(cgroup: Path, tmp_path: Path) -> None:
    place, report = tmp_path / "mounted", tmp_path / "report.json"
    place.mkdir()
    script = f"""
        (echo $BASHPID > {cgroup}/cgroup.procs; exec sleep 600) & inside=$!
        until grep -q $inside {cgroup}/cgroup.procs; do sleep 0.01; done
        lc() {{ {sys.executable} -m leakcheck "$@"; }}
        lc guard --scope cgroup:{cgroup} --kinds process,mount --settle 0.05 -o {report} -- mount -t tmpfs other {place}
        lc reap --diff {report} --yes
        grep {place} /proc/self/mountinfo; found=$?
        kill $inside; wait $inside; exit $found
    """
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert '"kind":"mount"' in report.read_text() and done.returncode == 0, done.stdout + done.stderr
