"""Measures a sweep on two workers beside the same sweep on one, with the same processors each; and without a cluster.

Part of run.py's page; run alone, it prints its rows. As root, from a directory below a root that is a mount point.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Row, interleaved, middle

SWEEP = ["-m", "leakcheck", "crash", "--target", "refbox", "--schedule", "both"]


def rows(rounds: int) -> list[Row]:
    """The speed-up; none if this machine cannot have two workers that are alike."""
    what = "a crash sweep of refbox on a cluster"
    processors = sorted(os.sched_getaffinity(0))
    if os.geteuid() != 0 or len(processors) < 2 or not shutil.which("taskset"):
        return [Row(what, "", "needs root, two processors and taskset")]
    one = ["taskset", "-c", str(processors[0]), sys.executable, *SWEEP]
    both = ["taskset", "-c", f"{processors[0]},{processors[1]}", sys.executable, *SWEEP]
    with tempfile.TemporaryDirectory() as place:

        def sweep(command: list[str], *more: str) -> None:
            store = Path(place, "store.db")
            for path in Path(place).iterdir():
                path.unlink()
            with Path(place, "log").open("wb") as log:
                done = subprocess.run([*command, "--store", store, *more], stdout=log, stderr=log, check=False)
            if done.returncode:
                raise RuntimeError(f"{command} ended with {done.returncode}: {Path(place, 'log').read_text()}")

        times = interleaved(
            {
                "one": lambda: sweep(one, "--cluster", "local:1"),
                "two": lambda: sweep(both, "--cluster", "local:2"),
                "none": lambda: sweep(both),
            },
            rounds,
        )
    medians = {name: statistics.median(all_of) for name, all_of in times.items()}
    gain = medians["one"] / medians["two"]
    return [
        Row(what, "one worker with one processor", middle(times["one"])),
        Row(what, "two workers with one processor each", middle(times["two"]), f"{gain:.2f} times as fast"),
        Row(
            what,
            "no cluster, two processors",
            middle(times["none"]),
            f"{medians['two'] / medians['none']:.2f} is the cluster's",
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    for row in rows(parser.parse_args().rounds):
        print(row)
