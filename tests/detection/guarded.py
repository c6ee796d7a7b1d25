"""`leakcheck guard` around a command whose supervisor is killed: what stays behind by design."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracle
import place
from plants import UNAVAILABLE, Plant

HERE = Path(__file__).resolve().parent
# Held by nothing but a descriptor, mapping or working directory of mkleak itself, or by its parenthood or its word.
END_WITH_MKLEAK = {
    "zombie",
    *oracle.RESPAWNING,
    "mount-lazy-cwd",
    "mount-ns-fd",
    "mount-detached",
    "mount-detached-clone",
    "lock-flock",
    "lock-posix",
    "lock-ofd",
    "lock-lease",
    "ns-net-fd",
    "net-veth-other-ns",
    "net-tcp-listen",
    "net-abstract-unix",
    "bpf-map",
    "bpf-prog",
}
# No namespace holds these: without mkleak they would stay on the machine for good.
NOT_LEFT_BEHIND = {"loop", "key", "sysctl"}
# What it is in is new to the guard as well, and of this kind: it is reported, and what is in it goes with it.
IN_ANOTHER = {
    "file-in-submount": "mount",
    **dict.fromkeys(("net-nft-chain", "net-nft-rule", "net-ipset-element", "net-forwarding"), "net"),
}


def verdict(plant: Plant, where: place.Place) -> str:
    """Return `yes` or `no`; `ends` for what ends with mkleak and is rightly not reported, `-` for what was not run."""
    if plant.kind in NOT_LEFT_BEHIND:
        return "-"
    report = guard(plant, where)
    if report is None:
        return "-"
    facts = json.loads((where.scratch / "facts").read_text())
    if plant.name == "lockfile-held":
        # Its owner is dead by now.
        plant = Plant("lockfile-stale", plant.kind, plant.needs, plant.what)
    if kind := IN_ANOTHER.get(plant.name):
        return "yes" if kind in {leak["kind"] for leak in report["leaks"]} else "no"
    found = oracle.is_found(plant, facts, report)
    if plant.kind == "fd" or plant.name in END_WITH_MKLEAK:
        return "false alarm" if found else "ends"
    return "yes" if found else "no"


def guard(plant: Plant, where: place.Place) -> dict[str, Any] | None:
    roots = [option for root in where.roots for option in ("--roots", root)]
    locks = ["--lock-files", where.dir] if plant.kind == "lockfile" else []
    command = [sys.executable, HERE / "leave.py", where.scratch, plant.name, *where.options(plant.name)]
    # As a program of its own, with files for output: nothing of the table's is in what it watches.
    with (where.scratch / "report").open("wb") as report, (where.scratch / "guard-complaints").open("wb") as complaints:
        leakcheck = [Path(sys.executable).with_name("leakcheck"), "guard", "--json", "--settle", "0.1", *roots, *locks]
        done = subprocess.run(
            [*leakcheck, "--", *command], stdin=subprocess.DEVNULL, stdout=report, stderr=complaints, check=False
        )
    text = (where.scratch / "report").read_text()
    if not text:
        raise RuntimeError(
            f"leakcheck guard ended with {done.returncode}: {(where.scratch / 'guard-complaints').read_text()}"
        )
    judged: dict[str, Any] = json.loads(text)
    status = judged["command"]["exit"]
    if status not in (0, UNAVAILABLE):
        raise RuntimeError(f"leave.py {plant.name} ended with {status}")
    return judged if status == 0 else None
