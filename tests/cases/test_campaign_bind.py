"""What a run does to a directory of the host that is bound into its arena is seen."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")


def guard(project: Path, script: str, place: str = "/mnt") -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "leakcheck", "guard", "--arena", "--json", "--settle", "0.1"]
    done = subprocess.run(
        [*command, "--bind", f"{project}:{place}", "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    (directory / "src").mkdir(parents=True)
    (directory / "src/main.c").write_text("int main(void) { return 0; }\n")
    (directory / "notes").write_text("keep\n")
    (directory / "large").write_bytes(b"x" * (2 << 20))
    (directory / "link").symlink_to("notes")
    return directory


def test_damage_to_what_is_bound_and_can_be_written_is_seen(project: Path) -> None:
    for name in ("appended", "backdated", "closed", "replaced"):
        (project / name).write_text("keep\n")
    (project / "given").mkdir()
    code, report = guard(
        project,
        "cd /mnt; rm -rf src; echo x >>appended; echo gone >backdated; touch -d @0 backdated; chmod 0600 closed;"
        " chown 1 given; chmod 0700 .; printf y | dd of=large conv=notrunc 2>/dev/null; ln -sfn src link;"
        " rm replaced; mkdir replaced",
    )
    assert code == 1
    assert {leak["label"] for leak in report["leaks"] if leak["class"] == "damaged"} == {
        "deleted dir /mnt/src",
        "deleted file /mnt/src/main.c",
        "changed file /mnt/appended",
        "changed file /mnt/backdated",
        "changed file /mnt/closed",
        "changed dir /mnt/given",
        "changed dir /mnt",
        "changed file /mnt/large",
        "changed symlink /mnt/link",
        "changed dir /mnt/replaced",
    }, report["leaks"]


def test_what_stat_does_not_show_of_what_is_bound_is_damage_too(project: Path) -> None:
    script = (
        "import os; os.setxattr('/mnt/notes', 'security.capability', bytes.fromhex('0100000200040000' + '00' * 12));"
        " os.setxattr('/mnt/src', 'trusted.moon', b'1'); os.removexattr('/mnt/large', 'trusted.old');"
        " os.setxattr('/mnt/src/main.c', 'trusted.old', b'2')"
    )
    for name in ("large", "src/main.c"):
        os.setxattr(project / name, "trusted.old", b"1")
    protects = subprocess.run(["chattr", "+i", project / "src/main.c"], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["chattr", "-i", project / "src/main.c"], stderr=subprocess.DEVNULL, check=False)
    (project / "kept").touch()
    try:
        code, report = guard(project, f"python3 -c {shlex.quote(script)}; chattr +i /mnt/kept")
    finally:
        subprocess.run(["chattr", "-i", project / "kept"], stderr=subprocess.DEVNULL, check=False)
    assert code == 1
    changed = {"file /mnt/notes", "dir /mnt/src", "file /mnt/large", "file /mnt/src/main.c"}
    # Not every file system has flags.
    changed |= {"file /mnt/kept"} if protects.returncode == 0 else set()
    assert {leak["label"] for leak in report["leaks"]} == {f"changed {name}" for name in changed}, report["leaks"]


def test_a_directory_that_is_emptied_through_another_bind_of_the_run_is_seen(project: Path) -> None:
    # As a sandbox's own clean-up does, that takes its mount of the project for a directory of its own.
    script = "mkdir /opt/box && mount --bind /mnt /opt/box && rm -rf /opt/box/* && umount /opt/box && rmdir /opt/box"
    code, report = guard(project, script)
    assert code == 1
    assert len([leak for leak in report["leaks"] if leak["class"] == "damaged"]) == 5, report["leaks"]


def test_a_new_file_in_it_is_what_it_is_bound_for_and_counted(project: Path) -> None:
    code, report = guard(project, "echo x >/mnt/new")
    assert (code, report["leaks"], report["gauges"]["bound_new_files"]) == (0, [], [0, 1])


def test_what_is_the_same_in_the_end_is_no_damage(project: Path) -> None:
    script = (
        "cd /mnt; cat large >/dev/null; touch notes; cp notes copy; mv copy notes; chmod 0600 notes; chmod 0644 notes;"
        " mv src away; mv away src"
    )
    code, report = guard(project, script)
    assert (code, report["leaks"]) == (0, [])


def test_a_read_only_bind_needs_no_list(project: Path) -> None:
    code, report = guard(project, "rm -rf /mnt/src", "/mnt:ro")
    assert (code, report["leaks"]) == (0, [])
    assert (project / "src/main.c").exists()


def test_a_single_file_that_is_bound_is_looked_at_too(project: Path) -> None:
    code, report = guard(project / "notes", "echo x >>/etc/issue", "/etc/issue")
    leaks = [(leak["label"], leak["class"]) for leak in report["leaks"]]
    assert (code, leaks) == (1, [("changed file /etc/issue", "damaged")])


def test_a_change_of_the_hosts_files_in_an_arena_is_damage(project: Path) -> None:
    code, report = guard(project, "chmod 0600 /etc/issue; rm /etc/issue.net; : >/etc/new")
    classes = {leak["label"]: leak["class"] for leak in report["leaks"]}
    assert classes == {
        "changed file /etc/issue": "damaged",
        "deleted file /etc/issue.net": "damaged",
        "file /etc/new": "orphaned",
    }
    assert code == 1
