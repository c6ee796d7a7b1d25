"""``leakcheck targets``: which sandboxes have adapters, and which of them can run here."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from leakcheck.conformance import tried
from leakcheck.deliver import print_json
from leakcheck.errors import TargetError
from leakcheck.render import line
from leakcheck.targets import Availability, Target, load
from leakcheck.targets.registry import builtin

_STYLE = {"ready": "green", "missing": "dim", "unable": "yellow"}


def targets(others: Sequence[Path], *, as_json: bool) -> int:
    """Try each target with one submission, those of the adapters `others` too, and print the results; returns 0."""
    tried_ones = [*builtin(), *map(load, others)]
    # One try per CPU at a time: two would slow down every observation, and a single try mostly waits.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = list(pool.map(_entry, tried_ones))
    if as_json:
        print_json(msgspec.json.encode({"schema": "leakcheck.targets/1", "targets": entries}).decode())
    else:
        _print(entries, Console())
    return 0


def _entry(target: Target) -> dict[str, str]:
    try:
        state = tried(target)
    except TargetError as error:
        state = Availability("unable", str(error), "")
    return {
        "name": target.name,
        "summary": target.adapter.summary,
        "state": state.state,
        "version": "" if state.state == "missing" else target.version(),
        "reason": state.reason,
        "hint": state.hint,
        "adapter": str(target.path),
    }


def _print(entries: list[dict[str, str]], console: Console) -> None:
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        state = (f"{entry['state']:<8}", _STYLE[entry["state"]])
        console.print(line(f"{entry['name']:<{width}} ", state, entry["version"] or entry["summary"]), soft_wrap=True)
        if entry["reason"]:
            hint = f"; {entry['hint']}" if entry["hint"] else ""
            console.print(line(" " * (width + 10), entry["reason"], (hint, "dim")), soft_wrap=True)
    ready = sum(entry["state"] == "ready" for entry in entries)
    console.print(line(f"{ready} of {len(entries)} can run here"), soft_wrap=True)
