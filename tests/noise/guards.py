"""Many guards of a clean command, several at once, each in a process of its own: prints every report that is not clean.

The guards see one another's runs, as on a busy judge. Each line on standard output is a JSON object: a report that was
not ``clean``, and at the end of each worker ``{"runs": N, "ms": {…}}``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter

CLEAN = ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--die-with-parent", "true")


def emit(record):
    """Write one line at once, so that lines of several workers do not mix (pipe(7), PIPE_BUF; longer ones go to a file)."""
    os.write(1, json.dumps(record).encode() + b"\n")


def library(runs):
    """Guard with the native class: what every front end does, without the start of an interpreter for each run."""
    from leakcheck._native import Guard

    total = Counter()
    for _ in range(runs):
        began = time.monotonic()
        guard = Guard()
        name, token = guard.token
        ready = time.monotonic()
        code = subprocess.run(CLEAN, env={**os.environ, name: token}, stdin=subprocess.DEVNULL, check=False).returncode
        ran = time.monotonic()
        report = json.loads(guard.end(list(CLEAN), code))
        guard.abandon()
        total.update(
            begin=ready - began, run=ran - ready, end=time.monotonic() - ran, looks=report["settle"]["looks"],
            looking=report["timing_ms"]["looking"] / 1000, baseline=report["timing_ms"]["baseline"] / 1000,
            noise=report["noise"],
        )
        judge(report, code)
    emit({"runs": runs, "mean": {what: value / runs for what, value in total.items()}, "cpu": os.times()[:4]})


def command(runs):
    """Guard with the command itself."""
    argv = [sys.executable, "-m", "leakcheck.cli", "guard", "--json", "--", *CLEAN]
    for _ in range(runs):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        judge(json.loads(done.stdout), done.returncode)
    emit({"runs": runs})


def judge(report, code):
    """Emit what is not as it should be."""
    if report["verdict"] != "clean" or code != 0:
        emit({"verdict": report["verdict"], "exit": code, **{k: report[k] for k in ("leaks", "unreadable", "settle")},
              "coverage": {k: c for k, c in report["coverage"].items() if c["level"] != "full"}})


def main():
    """Run one worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", choices=("library", "command"), default="library")
    parser.add_argument("runs", type=int)
    args = parser.parse_args()
    {"library": library, "command": command}[args.by](args.runs)


if __name__ == "__main__":
    main()
