"""Measures arenas: bring-up and take-down, a snapshot of one, a guarded command, and a campaign's rate.

Part of run.py's page; run alone, it prints its rows. As root, from a directory below a root that is a mount point.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

from measure import Row, interleaved, timed

from leakcheck import _native
from leakcheck.arena import Arena, prepare_observation
from leakcheck.campaigns import Leaks, LeaksOptions, run
from leakcheck.targets import builtin
from leakcheck.warden import shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

#: Between two arenas: a new one right after another finds the kernel's cgroup lock still warm.
GAP = 0.05
TRUE = ["/bin/true"]
# What an arena is made of, without its cgroups, /dev and the rest of its fresh directories.
SHELL = """mount -t tmpfs tmpfs /tmp && mkdir /tmp/upper /tmp/work /tmp/root &&
mount -t overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root"""
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "--mount", "sh", "-c", SHELL]
# All but a user namespace: root does not need one, and a chroot cannot create one.
BWRAP = ["bwrap", *(f"--unshare-{n}" for n in ("pid", "net", "ipc", "uts", "cgroup")), "--ro-bind", "/", "/", *TRUE]


def rows(rounds: int, trials: int) -> list[Row]:
    """All rows; none if no arena can be created."""
    if os.geteuid() != 0:
        return [Row("arenas", "", "need root")]
    try:
        return [*up_and_down(rounds), *one_look(rounds), guarded(rounds), *campaign(trials)]
    finally:
        shutdown()


def command(argv: list[str]) -> Callable[[], object]:
    """Returns what runs `argv`, which must succeed."""

    def run() -> object:
        return subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)

    return run


def up_and_down(rounds: int) -> list[Row]:
    """An arena without any work, compared with other tools that provide less."""

    def arena() -> None:
        with Arena():
            pass

    contestants = {"arena": arena, "unshare": command(UNSHARE)}
    if shutil.which("bwrap"):
        contestants["bwrap"] = command(BWRAP)
    times = interleaved(contestants, rounds, gap=GAP)
    ours = statistics.median(times["arena"])
    says = {
        "arena": "`with Arena(): pass`",
        "unshare": f"`{shlex.join(UNSHARE[:-1])} 'mount -t tmpfs …; mount -t overlay …'`",
        "bwrap": f"`{shlex.join(BWRAP)}`",
    }
    found = []
    for name, all_times in times.items():
        median = statistics.median(all_times)
        compared, target, passed = (
            ("", "≤ 4 ms", median <= 4) if name == "arena" else (f"{median / ours:.1f} times", "", None)
        )
        what = f"a disposable host, {GAP * 1000:.0f} ms after the last"
        found.append(Row(what, says[name], f"{median:.1f} ms", compared, target, passed))
    return found


def one_look(rounds: int) -> list[Row]:
    """Every kind in an arena: alone, and with eight orphans and a few files."""
    found = []
    for script in ("true", "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & echo x >/etc/$n; echo x >/tmp/$n; done"):
        with Arena() as arena:
            arena.run(["/bin/sh", "-c", script])
            view = arena.view
            took = [timed(lambda view=view: _native.snapshot(arena=view)) for _ in range(rounds * 4)]
            seen = _native.snapshot(arena=view)
            what = f"snapshot of an arena, {seen.count('process')} processes, {seen.count('file')} files"
        median = statistics.median(took)
        how = f"`snapshot(arena=…)`, every kind ({len(seen.kinds)})"
        found.append(Row(what, how, f"{median:.2f} ms", "", "≤ 0.8 ms", median <= 0.8))
    return found


def guarded(rounds: int) -> Row:
    """What `leakcheck guard --arena` adds to a command, but for Python's own start: the warden's start is in it."""

    def guard() -> None:
        ready = prepare_observation()
        with Arena() as arena:
            ready()
            watched = _native.Guard(arena=arena.view, settle_ms=500)
            code = arena.run(TRUE)
            report = watched.end(TRUE, code)
        shutdown()
        if '"verdict":"clean"' not in report.replace(" ", ""):
            raise AssertionError(report)

    shutdown()
    times = interleaved({"guard": guard, "true": command(TRUE)}, rounds, gap=GAP)
    bare = statistics.median(times["true"])
    added = statistics.median(times["guard"]) - bare
    what = f"`leakcheck guard --arena -- /bin/true` adds, to {bare:.1f} ms"
    how = "warden, arena, baseline, run, verdict and take-down, in process"
    return Row(what, how, f"{added:.1f} ms", "", "≤ 25 ms", added <= 25)


def campaign(trials: int) -> list[Row]:
    """Verified runs of bubblewrap against bare ones, as many at a time."""
    (target,) = (one for one in builtin() if one.name == "bwrap")
    if target.availability().state != "ready":
        return [Row("trials of `leakcheck leaks --target bwrap`", "", "bubblewrap is not ready here")]
    found = []
    for endings in (["normal"], list(LeaksOptions().endings)):
        result = run(Leaks(), target, LeaksOptions(iterations=trials, endings=endings))
        # A killed supervisor sometimes leaves residue: that is bubblewrap's, and does not change the time.
        if result.error or result.outcomes.get("false-status") or result.outcomes.get("unknown"):
            raise AssertionError(f"{result.error} {result.outcomes} {result.findings}")
        how = f"`leakcheck leaks --target bwrap --endings {','.join(endings)}`"
        bare = f"bare runs, as many at a time: {result.bare_rate:.0f} a second"
        compared = f"{bare}, {result.bare_rate / result.rate:.1f} times"
        found.append(Row("verified trials of bubblewrap", how, f"{result.rate:.1f} a second", compared))
        print(endings, result.timing_ms, result.settle_ms, f"run {result.run_ms} ms", file=sys.stderr)
    return found


def main() -> int:
    """Prints the rows; the exit code is 0 if every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} before the first round")
    found = rows(options.rounds, options.trials)
    print(*found, sep="\n")
    return 1 if any(row.passed is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
