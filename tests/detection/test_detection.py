"""leakcheck finds every plant, and is clean again when it is gone. The peers are left to `make detection`."""

import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leakcheck._bin import helper

TABLE = Path(__file__).with_name("table.py")
sys.path.insert(0, str(TABLE.parent))
import oracle  # noqa: E402
import table  # noqa: E402
from place import RIGHTS, RIGHTS_OF  # noqa: E402
from plants import Plant  # noqa: E402

Row = dict[str, Any]

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("unshare", "mount", "findmnt", "find", "lsof")),
    reason="util-linux, findutils or lsof is missing: run `make setup`",
)


# A chroot (user_namespaces(7)): other mount namespaces do not begin at its root, and it has no user namespaces.
CHROOTED = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0
not_in_a_chroot = pytest.mark.skipif(CHROOTED, reason="no user namespace can be made here: a chroot, or forbidden")


@functools.cache
def plants() -> dict[str, Row]:
    listed = subprocess.run([helper("mkleak"), "--list", "--json"], capture_output=True, check=True)
    return {plant["name"]: plant for plant in json.loads(listed.stdout)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    output = tmp_path_factory.mktemp("detection") / "rows.json"
    command = [sys.executable, TABLE, "--leakcheck-only", "--json", output]
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90, check=False)
    if "unshare failed" in ran.stderr:
        pytest.skip(f"no namespaces may be made here: {ran.stderr.strip()}")
    assert output.exists(), ran.stdout + ran.stderr
    return {row["plant"]["name"]: row for row in json.loads(output.read_text())}


@pytest.mark.parametrize("name", plants())
def test_leakcheck_finds_the_plant_and_is_clean_again_when_it_is_gone(name: str, rows: dict[str, Row]) -> None:
    row = rows[name]
    if row["skipped"]:
        pytest.skip(row["skipped"])
    if CHROOTED and name in ("mount-ns-fd", "mount-ns-bind"):
        pytest.skip("in a chroot another mount namespace shows its paths from another root")
    assert row["found"]["leakcheck"], f"READY said {row['facts']}; it leaked {row['report']['leaks']}"
    assert row["clean"], f"after CLEAN the report still has {row['left']}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights up")
@not_in_a_chroot
@pytest.mark.parametrize("rights", RIGHTS_OF)
def test_with_fewer_rights_every_plant_that_can_be_made_is_found_and_clean_again_when_it_is_gone(rights: str) -> None:
    command = [sys.executable, TABLE, "--leakcheck-only", "--rights", rights]
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = {row["plant"]["name"]: table.cell(row) for row in json.loads(ran.stdout)}
    assert cells["orphan"] == cells["file-fifo"] == cells["shm-sysv"] == "yes"
    not_found = {name: cell for name, cell in cells.items() if cell not in ("yes", "-")}
    assert not_found.items() <= ({("mqueue", "unnamed")} if rights in RIGHTS else set())
    # There the user has the capabilities of its own namespaces.
    if rights not in RIGHTS:
        of_namespaces = ("mount-tmpfs", "mount-detached", "ns-net-fd", "net-route", "mqueue")
        assert {cells[name] for name in of_namespaces} == {"yes"}


@not_in_a_chroot
def test_a_report_of_another_plant_of_the_kind_is_not_taken_for_the_plant(rows: dict[str, Row]) -> None:
    ran = [row for row in rows.values() if not row["skipped"]]
    for row, other in itertools.permutations(ran, 2):
        # A namespace that ended leaves its inode to the next one, and these facts have no more than that.
        if row["plant"]["kind"] == other["plant"]["kind"] != "namespace":
            plant = Plant(**row["plant"])
            assert not oracle.is_found(plant, row["facts"], other["report"]), (row["plant"], other["plant"])
            assert oracle.is_found(plant, row["facts"], row["report"])


@functools.cache
def kernel_symbols() -> frozenset[str]:
    return frozenset(line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines())


def has_link_type(name: str) -> bool:
    command = ["unshare", "--net", "ip", "link", "add", "probe", "type", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def exists_here(need: str) -> bool:
    """Whether the machine has what a plant needs, asked in another way than mkleak does."""
    if re.match("cgroup-v", need):
        fields = [line.split(" ") for line in Path("/proc/mounts").read_text().splitlines()]
        hierarchies = {"cgroup-v2" for f in fields if f[2] == "cgroup2"}
        hierarchies |= {f"cgroup-v1:{option}" for f in fields if f[2] == "cgroup" for option in f[3].split(",")}
        return any(one in hierarchies for one in need.split(" or "))
    if need.startswith("/dev/"):
        return Path(need).exists()
    probes = {
        "root": lambda: os.geteuid() == 0,
        "io_uring": lambda: "io_uring_setup" in kernel_symbols(),
        "bpf": lambda: "bpf_prog_load" in kernel_symbols(),
        "nft": lambda: "nf_tables_newtable" in kernel_symbols(),
        "cls_u32": lambda: "u32_classify" in kernel_symbols(),
        "xfrm": lambda: "xfrm_add_policy" in kernel_symbols(),
        "ipset": lambda: "hash_ip_create" in kernel_symbols(),
        "iptables-legacy": lambda: "ipt_do_table" in kernel_symbols() and bool(shutil.which("iptables-legacy")),
        "tun": lambda: Path("/dev/net/tun").exists(),
        "ksm": lambda: Path("/sys/kernel/mm/ksm").exists(),
        "keys": lambda: Path("/proc/keys").exists(),
        "user namespaces": lambda: Path("/proc/self/ns/user").exists(),
        "time namespaces": lambda: Path("/proc/self/ns/time").exists(),
    }
    file_systems = {"overlay": "overlay", "bpffs": "bpf", "mqueue": "mqueue"}
    if need in file_systems:
        return file_systems[need] in Path("/proc/filesystems").read_text().split()
    return probes[need]() if need in probes else has_link_type(need)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may not make everything that exists")
@pytest.mark.skipif(
    "\nSeccomp:\t2" in Path("/proc/self/status").read_text(), reason="a seccomp filter hides the kernel"
)
@not_in_a_chroot
def test_a_plant_is_skipped_only_where_the_machine_lacks_what_it_needs(rows: dict[str, Row]) -> None:
    skipped = [row for row in rows.values() if row["skipped"]]
    without_cause = {
        row["plant"]["name"]: row["skipped"] for row in skipped if all(map(exists_here, row["plant"]["needs"]))
    }
    assert not without_cause
