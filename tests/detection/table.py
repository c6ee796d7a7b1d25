#!/usr/bin/env python3
"""Runs every plant of mkleak against leakcheck and its peers, in a disposable place, and writes the table."""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import guarded
import oracle
import page
import place
from peers.psutil_fixture import usage
from plants import Mkleak, Plant, UnavailableError, every_plant

from leakcheck import Arena

HERE = Path(__file__).resolve().parent
PEERS = ("psutil", "lsof", "findmnt+find")


@dataclass
class Row:
    """What each tool saw of one plant."""

    plant: Plant
    found: dict[str, bool] = field(default_factory=dict)
    clean: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    guard: str = "-"
    # With fewer rights, by their name: `yes`, `unnamed`, `no`, `not clean`, or `-` for what cannot be made there.
    limited: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def keys(self) -> list[str]:
        return [leak["key"] for leak in self.report["leaks"]]


def main() -> int:
    options = arguments()
    missing = place.missing_tools()
    if missing:
        print(f"table.py: missing {', '.join(missing)}: run `make setup`", file=sys.stderr)
        return 2
    inside = place.enter(options.rights)
    if inside is None:
        return outside(options)
    chosen = [p for p in every_plant() if not options.plants or p.name in options.plants]
    peers = () if options.leakcheck_only else PEERS
    if options.rights == place.ARENA:
        rows = [run_in_arena(plant, inside) for plant in chosen]
    else:
        watch(inside, peers, inside.dir / "warm-up.lock")()
        rows = [run(plant, inside, peers) for plant in chosen]
    if not options.leakcheck_only:
        # After all else: what these leave behind stays until the place goes.
        for row in rows:
            row.guard = guarded.verdict(row.plant, inside)
            row.limited = {rights: cells[row.plant.name] for rights, cells in json.loads(options.limited).items()}
    if options.rights:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page.render(rows))
    wrong = [(row, why) for row in rows if (why := complaint(row))]
    for row, why in wrong:
        print(f"{row.plant.name}: {why}", file=sys.stderr)
    print(page.summary(rows, ("leakcheck", *peers)))
    return 1 if wrong else 0


def outside(options: argparse.Namespace) -> int:
    """Run this program in a place; before, for the whole table, with each set of fewer rights."""
    program = Path(__file__).resolve()
    if options.leakcheck_only:
        return place.run_inside(program, sys.argv[1:])
    limited = {}
    with tempfile.TemporaryDirectory(prefix="leakcheck-detection-") as base:
        for rights in place.RIGHTS_OF:
            rows = Path(base, f"{rights}.json")
            with rows.open("w") as output:
                words = ["--leakcheck-only", "--rights", rights, *options.plants]
                if place.run_inside(program, words, output) not in (0, 1):
                    return 2
            limited[rights] = {row["plant"]["name"]: cell(row) for row in json.loads(rows.read_text())}
    return place.run_inside(program, [*sys.argv[1:], "--limited", json.dumps(limited)])


def cell(row: dict[str, Any]) -> str:
    if row["skipped"]:
        return "-"
    if not row["found"]["leakcheck"]:
        of_kind = any(leak["kind"] == row["plant"]["kind"] for leak in row["report"]["leaks"])
        return "unnamed" if of_kind and row["clean"] else "no"
    return "yes" if row["clean"] else "not clean"


def complaint(row: Row) -> str | None:
    """Return why leakcheck's part of the row is not as it has to be."""
    if row.skipped:
        return None
    if not row.found["leakcheck"]:
        return f"missed: {row.facts} is not in {row.keys}"
    if not row.clean:
        return f"not clean again: {row.left}"
    limited = [f"{rights}: {cell}" for rights, cell in row.limited.items() if cell in ("no", "not clean")]
    return f"guard: {row.guard}" if row.guard in ("no", "false alarm") else ", ".join(limited) or None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    parser.add_argument("--leakcheck-only", action="store_true", help="leave the peers out")
    parser.add_argument("--rights", choices=[*place.RIGHTS_OF], help="with these rights only; prints every row as JSON")
    parser.add_argument("--limited", help=argparse.SUPPRESS)
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
    words = [plant.name, "--hold", *where.options(plant.name)]
    with unavailable_noted(row), Mkleak(words, where.scratch / "complaints") as mkleak:
        pid = mkleak.expect("WAITING")["pid"]
        before, after = planted(row, mkleak, watch(where, peers, where.lock_file(pid)))
        row.found.update({peer: before[peer] != after[peer] for peer in peers})
    return row


def run_in_arena(plant: Plant, where: place.Place) -> Row:
    """Run one plant in an arena of its own."""
    row = Row(plant)
    with unavailable_noted(row), Arena() as arena:
        start = functools.partial(arena.popen, env=os.environ)
        # In an arena, /tmp is a tmpfs of it.
        locks = ["/tmp"] if plant.kind == "lockfile" else []
        words = [plant.name, "--hold", "--dir", "/tmp"]
        with Mkleak(words, where.scratch / "complaints", start) as mkleak:
            mkleak.expect("WAITING")
            planted(row, mkleak, lambda: {"leakcheck": oracle.look_at_arena(arena, locks)})
    return row


def planted(row: Row, mkleak: Mkleak, look: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Have a waiting mkleak plant and clean up; note what leakcheck sees, and return the two looks of every tool."""
    before = look()
    mkleak.go_on()
    row.facts = mkleak.expect("READY")
    after = look()
    row.report = oracle.look_again(row.plant, before["leakcheck"], after["leakcheck"])
    row.found = {"leakcheck": oracle.is_found(row.plant, row.facts, row.report)}
    mkleak.go_on()
    mkleak.expect("CLEAN")
    settled = oracle.settle(before["leakcheck"])
    row.clean = oracle.is_clean(row.plant, row.facts, settled)
    row.left = [leak["key"] for leak in settled["leaks"]]
    mkleak.go_on()
    return before, after


@contextlib.contextmanager
def unavailable_noted(row: Row) -> Iterator[None]:
    try:
        yield
    except UnavailableError as unavailable:
        row.skipped = str(unavailable)


if __name__ == "__main__":
    sys.exit(main())
