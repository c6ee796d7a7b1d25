"""The set-up script on machines that lack something. Every command that it could change the machine with is a fake."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = ["bash", "cut", "dirname", "env", "head", "sort"]
PRESENT = ["bwrap", "runc", "firejail", "busybox", "lsof", "findmnt", "lsfd", "ps", "ip", "python3"]


class Machine:
    """A PATH of fakes, and a checkout that holds the script only."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.log = directory / "apt.log"
        self.log.touch()
        (directory / "checkout/scripts").mkdir(parents=True)
        # The script also looks into sbin, where this machine's own commands are.
        text = (ROOT / "scripts/setup").read_text()
        self.script = directory / "checkout/scripts/setup"
        self.script.write_text(text.replace("/usr/sbin:/sbin", "/nonexistent"))
        self.script.chmod(0o755)
        for name in REAL:
            real = shutil.which(name)
            assert real
            (self.bin / name).symlink_to(real)
        for name in PRESENT:
            self.fake(name, "exit 0")
        self.fake("cc", "read -r _")  # it reads, so that the process that pipes a header to it does not get SIGPIPE
        self.fake("apt-get", f'echo "$*" >>{self.log}')
        self.user(0)
        self.cargo("1.88.0")

    def fake(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def user(self, uid: int) -> None:
        self.fake("id", f"echo {uid}")

    def cargo(self, version: str) -> None:
        self.fake("cargo", f"echo cargo {version}")

    def setup(self, *arguments: str) -> tuple[int, str]:
        env = {"PATH": str(self.bin), "HOME": "/nonexistent", "LANG": os.environ.get("LANG", "C.UTF-8")}
        done = subprocess.run(
            [self.script, *arguments], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr

    def installed(self) -> list[str]:
        lines = [line for line in self.log.read_text().splitlines() if " install " in line]
        return lines[0].split("--no-install-recommends ")[1].split() if lines else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_installed_where_nothing_is_missing(machine: Machine) -> None:
    machine.setup()
    assert machine.log.read_text() == ""


def test_root_gets_exactly_the_packages_that_are_missing(machine: Machine) -> None:
    (machine.bin / "bwrap").unlink()
    (machine.bin / "lsfd").unlink()
    machine.setup()
    assert machine.installed() == ["bubblewrap", "util-linux-extra"]


def test_the_virtual_machine_and_the_browser_are_installed_for_the_full_suite_alone(machine: Machine) -> None:
    machine.setup("full")
    assert machine.installed() == ["qemu-system-x86", "chromium", "ffmpeg"]
    for program in ("qemu-system-x86_64", "chromium", "ffmpeg"):
        machine.fake(program, "exit 0")
    machine.log.write_text("")
    machine.setup("full")
    assert machine.installed() == []


def test_an_ordinary_user_is_told_the_exact_line_and_nothing_is_touched(machine: Machine) -> None:
    (machine.bin / "runc").unlink()
    machine.user(1000)
    code, said = machine.setup()
    assert code == 1
    assert "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends runc'" in said
    assert machine.log.read_text() == ""
    assert not (machine.script.parent.parent / ".venv").exists()


def test_a_machine_without_apt_is_told_what_to_install(machine: Machine) -> None:
    (machine.bin / "apt-get").unlink()
    (machine.bin / "lsof").unlink()
    code, said = machine.setup()
    assert code == 1
    assert "missing (by their Debian names): lsof" in said


@pytest.mark.parametrize("version", ["1.88.0", "1.100.0", "2.0.0"])
def test_a_cargo_that_is_new_enough_is_used_as_it_is(machine: Machine, version: str) -> None:
    machine.cargo(version)
    machine.setup()
    assert machine.installed() == []


@pytest.mark.parametrize("version", ["0.66.0", "1.85.1", "1.87.0"])
def test_an_older_cargo_makes_way_for_cargo_web(machine: Machine, version: str) -> None:
    machine.cargo(version)
    code, said = machine.setup()
    assert machine.installed() == ["cargo-web"]
    assert code == 1
    assert f"cargo {version} is too old" in said


def test_a_missing_cargo_is_installed_as_cargo_web(machine: Machine) -> None:
    (machine.bin / "cargo").unlink()
    machine.setup()
    assert machine.installed() == ["cargo-web"]
