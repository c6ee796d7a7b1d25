"""Measures two builds of leakcheck beside each other: this checkout and another one, each built in its own ``.venv``.

Rounds are interleaved (A B, B A, A B …), so that a slow minute of the machine is slow for both; medians are compared.
Ends with 1 if a row is slower than ``--limit`` times.

    benches/beside.py ../leakcheck-before --rounds 30
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Uses only what both builds have; it runs as a separate program in each of them.
WORKER = r"""
import os, subprocess, sys, time
from leakcheck import _native
from leakcheck.arena import Arena
try:
    from leakcheck.arena import prepare_observation
except ImportError:
    # Its old name.
    from leakcheck.arena import look_soon as prepare_observation
try:
    from leakcheck.warden import shutdown
except ImportError:
    from leakcheck.arena import shutdown

TRUE = ["/bin/true"]
ORPHANS = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & echo x >/etc/$n; echo x >/tmp/$n; done"

def host():
    _native.snapshot()

def host_before():
    # Without settings, which the other build may not know.
    _native.snapshot(kinds="process,fd,mount,cgroup,lock,file,ipc,namespace,net,loop,key,bpf")

def host_processes():
    _native.snapshot(kinds="process,fd")

def host_guard():
    _native.Guard().end()

def arena_empty():
    with Arena():
        pass

def arenas():
    for _ in range(20):
        arena_empty()

standing = {}
def look(script):
    if script not in standing:
        standing[script] = Arena()
        standing[script].__enter__().run(["/bin/sh", "-c", script])
    _native.snapshot(arena=standing[script].view)

def arena_one():
    look("true")

def arena_nine():
    look(ORPHANS)

def arena_guard():
    ready = prepare_observation()
    with Arena() as arena:
        ready()
        watched = _native.Guard(arena=arena.view, settle_ms=500)
        report = watched.end(TRUE, arena.run(TRUE))
    assert '"verdict":"clean"' in report.replace(" ", ""), report

def command(*words):
    def run():
        subprocess.run([sys.executable, "-m", "leakcheck", *words], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return run

ROWS = {
    "snapshot of the host, every kind": host,
    "snapshot of the host, every kind but settings": host_before,
    "snapshot of the host, process,fd": host_processes,
    "guard on the host": host_guard,
    "arena up and down": arena_empty,
    "20 arenas up and down": arenas,
    "snapshot of an arena, 1 process": arena_one,
    "snapshot of an arena, 9 processes": arena_nine,
    "guard in an arena": arena_guard,
    "leakcheck --help": command("--help"),
    "leakcheck guard -- true": command("guard", "--", "true"),
    "leakcheck guard --arena -- true": command("guard", "--arena", "--", "true"),
    "leakcheck leaks --target bwrap, 40 trials": command(
        "leaks", "--target", "bwrap", "--iterations", "40", "--endings", "normal", "--seed", "1"),
    "leakcheck stress --target bwrap, 200 submissions": command(
        "stress", "--target", "bwrap", "--submissions", "200", "--concurrency", "4", "--seed", "1"),
}
if os.geteuid() != 0:
    ROWS = {name: run for name, run in ROWS.items() if "arena" not in name and "bwrap" not in name}
print(*ROWS, sep="|", flush=True)
for line in sys.stdin:
    run = ROWS[line.strip()]
    if run is arena_empty:
        # The warden prepares the next arena in the background: 20 in a row measure that as well.
        time.sleep(0.05)
    began = time.perf_counter()
    run()
    print((time.perf_counter() - began) * 1000, flush=True)
    if run is arena_guard:
        shutdown()
"""


class Build:
    """A worker in one checkout."""

    def __init__(self, checkout: Path, program: Path) -> None:
        python = checkout / ".venv" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"beside: {checkout} has no .venv: run `make setup` there")
        self.process = subprocess.Popen(
            [str(python), "-P", str(program)],
            cwd=checkout,
            env={"PYTHONPATH": str(checkout), "PATH": f"{python.parent}:/usr/bin:/bin:/usr/sbin:/sbin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rows = self._line().split("|")

    def _line(self) -> str:
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"beside: the worker ended: {self.process.args}")
        return line.strip()

    def time(self, row: str) -> float:
        """Run it once and return the milliseconds."""
        assert self.process.stdin
        print(row, file=self.process.stdin, flush=True)
        return float(self._line())


def main() -> int:
    """Measure and print; the exit code is 0 if no row is too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with, built")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=1.1)
    parser.add_argument("--only", default="", help="rows with this in their name")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(WORKER)
        program.flush()
        builds = [Build(options.other.resolve(), Path(program.name)), Build(HERE.parent, Path(program.name))]
        slow = False
        print("| what | before | now | ratio | |\n|---|---|---|---|---|")
        for row in [name for name in builds[0].rows if options.only in name and name in builds[1].rows]:
            # A program's run takes so much longer that fewer rounds are enough.
            rounds = options.rounds // 4 if "bwrap" in row else options.rounds
            pairs = []
            for number in range(max(2, rounds) + 1):
                order = builds if number % 2 else builds[::-1]
                times = {build: build.time(row) for build in order}
                pairs.append((times[builds[0]], times[builds[1]]))
            before, now = zip(*pairs[1:], strict=True)
            ratio = statistics.median(now) / statistics.median(before)
            slow |= ratio > options.limit
            said = f"{statistics.median(before):.2f} ms | {statistics.median(now):.2f} ms | {ratio:.2f}"
            print(f"| {row} | {said} | {'**slower**' if ratio > options.limit else ''} |", flush=True)
        for build in builds:
            assert build.process.stdin
            build.process.stdin.close()
            build.process.wait()
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
