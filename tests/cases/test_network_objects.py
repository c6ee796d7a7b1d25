"""What filters, forwards and labels packets, added to what was there before a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases.conftest import INPUTS

OBJECTS = INPUTS / "network_objects.py"
GUARD = [sys.executable, "-m", "leakcheck", "guard", "--kinds", "net", "--settle", "0.1", "--json", "--"]


def symbols() -> set[str]:
    return {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can configure a network namespace"),
    pytest.mark.skipif(not (shutil.which("ip") and shutil.which("bridge")), reason="iproute2 is missing"),
    pytest.mark.skipif(
        not {"br_fdb_add", "br_mdb_add", "vxlan_fdb_add", "hash_ip_create", "nf_tables_newset", "arpt_do_table"}
        <= symbols(),
        reason="this kernel lacks bridges, VXLANs, ipset, nftables or arptables",
    ),
]


def leaks_of(*words: str, before: str = "make") -> list[str]:
    """Return the labels of what a run of these leaves in a new network namespace, after what `before` says was made."""
    made = f'set -e; for words in {before}; do {sys.executable} {OBJECTS} $words; done; exec "$@"'
    run = [*GUARD, sys.executable, str(OBJECTS), *words] if words else [*GUARD, "true"]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", made, "sh", *run],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["command"]["exit"] == 0, done.stderr
    assert report["coverage"]["net"]["level"] == "full", report["coverage"]
    return [leak["label"] for leak in report["leaks"]]


def test_an_element_an_entry_a_label_or_a_rule_that_was_added_is_found_and_what_was_there_is_not() -> None:
    found = leaks_of("add")
    for label in (
        "forwarding entry 020000000009 dev v0",
        "forwarding entry 02000000000a self dev v1",
        "forwarding entry 000000000000 self to 192.0.2.7 dev vx0",
        "multicast group",
        "address label 2001:db8::/32 label 99",
        "element of ipset blocked: 192.0.2.1",
        "element of nftables set ip filter allowed: 192.0.2.2",
        "iptables rule arp filter INPUT: from any to any DROP",
    ):
        assert [one for one in found if one.startswith(label)], (label, found)
    assert len(found) == 8, found
    assert leaks_of(before="make add") == []


def test_a_set_that_is_new_is_one_leak_with_all_of_its_elements() -> None:
    found = leaks_of("make", before="")
    assert [one for one in found if "ipset" in one] == ["ipset blocked"]
    assert [one for one in found if "nftables" in one] == ["nftables table ip filter"]
    assert not [one for one in found if "forwarding" in one or "label" in one], found


def test_one_more_element_of_a_set_with_very_many_is_found() -> None:
    more = [one for one in leaks_of("add", before="make 'many 5000'") if "ipset" in one]
    assert len(more) == 1, more
    assert more[0].startswith("element of ipset blocked: 5001 elements, digest ")
