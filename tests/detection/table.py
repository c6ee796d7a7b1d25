#!/usr/bin/env python3
"""Runs every plant of mkleak against leakcheck and its peers, in a disposable place, and writes the table."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import oracle
import page
import place
from peers.psutil_fixture import usage
from plants import Mkleak, Plant, UnavailableError, every_plant

HERE = Path(__file__).resolve().parent
PEERS = ("psutil", "lsof", "findmnt+find")


@dataclass
class Row:
    """What each tool saw of one plant."""

    plant: Plant
    found: dict[str, bool] = field(default_factory=dict)
    clean: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    skipped: str | None = None


def main() -> int:
    options = arguments()
    missing = place.missing_tools()
    if missing:
        print(f"table.py: missing {', '.join(missing)}: run `make setup`", file=sys.stderr)
        return 2
    inside = place.enter()
    if inside is None:
        return place.run_inside(Path(__file__).resolve(), sys.argv[1:])
    chosen = [p for p in every_plant() if not options.plants or p.name in options.plants]
    peers = () if options.leakcheck_only else PEERS
    watch(inside, peers, inside.dir / "warm-up.lock")()
    rows = [run(plant, inside, peers) for plant in chosen]
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page.render(rows))
    missed = [row for row in rows if not row.skipped and not (row.found["leakcheck"] and row.clean)]
    for row in missed:
        what = f"not clean again: {row.left}" if row.found["leakcheck"] else f"missed: {row.facts} is not in {row.leaks}"
        print(f"{row.plant.name}: {what}", file=sys.stderr)
    print(page.summary(rows, ("leakcheck", *peers)))
    return 1 if missed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    parser.add_argument("--leakcheck-only", action="store_true", help="leave the peers out")
    parser.add_argument("plants", nargs="*", help="only these")
    return parser.parse_args()


def watch(where: place.Place, peers: tuple[str, ...], lock_file: Path) -> Callable[[], dict[str, Any]]:
    """Return what looks once with every tool."""
    tools: dict[str, Callable[[], Any]] = {
        "psutil": usage,
        "lsof": lambda: script(where, "lsof_diff.sh"),
        "findmnt+find": lambda: script(where, "findmnt_find.sh", *where.roots, *sorted(set(where.cgroups.values()))),
    }
    return lambda: {
        **{peer: tools[peer]() for peer in peers},
        "leakcheck": oracle.look([str(root) for root in where.roots], [str(lock_file)]),
    }


def script(where: place.Place, name: str, *arguments: Path) -> str:
    # To a file: a pipe of the runner's would be new in every listing.
    output = where.scratch / "listing"
    with output.open("wb") as listing:
        subprocess.run([HERE / "peers" / name, *arguments], stdout=listing, stderr=subprocess.DEVNULL, check=False)
    return output.read_text(errors="surrogateescape")


def run(plant: Plant, where: place.Place, peers: tuple[str, ...]) -> Row:
    row = Row(plant)
    arguments = [plant.name, "--hold", "--dir", str(where.dir)]
    if cgroup := where.cgroup_for(plant.name):
        arguments += ["--cgroup", str(cgroup)]
    try:
        with Mkleak(arguments, where.scratch / "complaints") as mkleak:
            pid = mkleak.expect("WAITING")["pid"]
            look = watch(where, peers, where.lock_file(pid))
            before = look()
            mkleak.go_on()
            row.facts = mkleak.expect("READY")
            after = look()
            report = oracle.diff(before["leakcheck"], after["leakcheck"])
            row.leaks = [leak["key"] for leak in report["leaks"]]
            row.found = {peer: before[peer] != after[peer] for peer in peers}
            row.found["leakcheck"] = oracle.is_found(plant, row.facts, report)
            mkleak.go_on()
            mkleak.expect("CLEAN")
            settled = oracle.settle(before["leakcheck"])
            row.clean = oracle.is_clean(plant, row.facts, settled)
            row.left = [leak["key"] for leak in settled["leaks"]]
            mkleak.go_on()
    except UnavailableError as unavailable:
        row.skipped = str(unavailable)
    return row


if __name__ == "__main__":
    sys.exit(main())
