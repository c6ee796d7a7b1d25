"""What a run does to a directory of the host that is bound into its arena is seen."""

import json
import os
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


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("rm -rf /mnt/src", {"deleted dir /mnt/src", "deleted file /mnt/src/main.c"}),
        ("echo x >>/mnt/notes", {"changed file /mnt/notes"}),
        ("echo gone >/mnt/notes; touch -d @0 /mnt/notes", {"changed file /mnt/notes"}),
        ("chmod 0600 /mnt/notes", {"changed file /mnt/notes"}),
        ("chown 1 /mnt/src", {"changed dir /mnt/src"}),
        ("chmod 0700 /mnt", {"changed dir /mnt"}),
        ("printf y | dd of=/mnt/large conv=notrunc 2>/dev/null", {"changed file /mnt/large"}),
        ("ln -sfn src /mnt/link", {"changed symlink /mnt/link"}),
        ("rm /mnt/notes; mkdir /mnt/notes", {"changed dir /mnt/notes"}),
    ],
)
def test_damage_to_what_is_bound_and_can_be_written_is_seen(project: Path, script: str, seen: set[str]) -> None:
    code, report = guard(project, script)
    assert code == 1
    assert {leak["label"] for leak in report["leaks"] if leak["class"] == "damaged"} == seen, report["leaks"]


def test_a_new_file_in_it_is_what_it_is_bound_for_and_counted(project: Path) -> None:
    code, report = guard(project, "echo x >/mnt/new")
    assert (code, report["leaks"], report["gauges"]["bound_new_files"]) == (0, [], [0, 1])


@pytest.mark.parametrize(
    "script",
    [
        "cat /mnt/notes >/dev/null; ls -lR /mnt >/dev/null",
        "touch /mnt/notes",
        "cp /mnt/notes /mnt/copy; mv /mnt/copy /mnt/notes",
        "chmod 0600 /mnt/notes; chmod 0644 /mnt/notes",
        "mv /mnt/src /mnt/away; mv /mnt/away /mnt/src",
    ],
)
def test_what_is_the_same_in_the_end_is_no_damage(project: Path, script: str) -> None:
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
