"""Measures the reference sandbox beside bubblewrap, and the campaign `stress` with and without its observations.

Part of run.py's page; run alone, it prints its rows. As root, from a directory below a root that is a mount point.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from arenas import command
from measure import Row, interleaved

from leakcheck._bin import helper
from leakcheck.campaigns import Stress, StressOptions, run
from leakcheck.evidence import Store
from leakcheck.submissions import parse_specs
from leakcheck.targets import load
from leakcheck.warden import shutdown

#: Gap between two runs, as on a judge that is not saturated.
GAP = 0.02
TRUE = ["/bin/true"]
CONCURRENCY = 4
#: What a judge's sandbox hides and shows; refbox also has cgroup limits, seccomp and rlimits.
BWRAP = [
    "bwrap", *(f"--unshare-{name}" for name in ("pid", "net", "ipc", "uts", "cgroup")), "--die-with-parent",
    "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
    "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", *TRUE,
]  # fmt: skip


def rows(rounds: int, submissions: int) -> list[Row]:
    """All rows; none if no arena can be created."""
    if os.geteuid() != 0:
        return [Row("the reference sandbox and the campaign `stress`", "", "need root")]
    try:
        return [*beside_bubblewrap(rounds), *verified(submissions)]
    finally:
        shutdown()


def beside_bubblewrap(rounds: int) -> list[Row]:
    """One run of a program that does nothing."""
    if not shutil.which("bwrap"):
        return [Row("`refbox run`", "", "no bubblewrap to compare it with")]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:  # A tmpfs, as /run mostly is.
        result = Path(place, "result.json")
        refbox = [str(helper("refbox")), "run", "--box", "0", "--state", f"{place}/state", "--result", str(result)]
        refbox += ["--program", *TRUE]
        times = interleaved({"refbox": command(refbox), "bwrap": command(BWRAP)}, rounds, gap=GAP)
        if '"OK"' not in result.read_text():
            raise AssertionError(result.read_text())
    ours, theirs = (statistics.median(times[name]) for name in ("refbox", "bwrap"))
    what = f"a sandboxed `/bin/true`, {GAP * 1000:.0f} ms after the last"
    ratio = ours / theirs
    return [
        Row(what, "`refbox run`", f"{ours:.1f} ms", f"{ratio:.2f} times bubblewrap", "≤ 1.5 times", ratio <= 1.5),
        Row(what, f"`{shlex.join(BWRAP)}`", f"{theirs:.1f} ms"),
    ]


def verified(submissions: int, pairs: int = 5) -> list[Row]:
    """Submissions of a trivial native program per second, alternately with and without observations."""
    target = load("refbox")
    ways = ("with looks", "without", "recorded")
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as place:
        for number in range(pairs):
            for way in ways[number % 3 :] + ways[: number % 3]:
                options = StressOptions(
                    submissions=submissions,
                    concurrency=CONCURRENCY,
                    specs=parse_specs("c/hello"),
                    observe=way != "without",
                )
                with Store(Path(place, f"{number}.db"), create=True) as store, contextlib.ExitStack() as stack:
                    recording = None
                    if way == "recorded":
                        recording = stack.enter_context(store.record(Stress(), target, options, resume=False))
                    result = run(Stress(), target, options, recording=recording)
                if result.verdict != "clean" or result.outcomes != {"clean": submissions}:
                    raise AssertionError(f"{result.outcomes} {result.findings}")
                rates[way].append(result.rate)
        size = statistics.median(path.stat().st_size for path in Path(place).glob("*.db"))
    on, off, recorded = (statistics.median(rates[way]) for way in ways)
    what = f"submissions of a trivial native program, {CONCURRENCY} at once"
    how = f"`leakcheck stress --target refbox --submission c/hello --submissions {submissions}`"
    share, kept = (
        statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))
        for one, other in (("with looks", "without"), ("recorded", "with looks"))
    )
    return [
        Row(what, how, f"{on:.0f} a second", "", "≥ 150 a second", on >= 150),
        Row(
            what,
            "the same without a look",
            f"{off:.0f} a second",
            f"with looks {share:.3f} of it",
            "≥ 0.95",
            share >= 0.95,
        ),
        Row(
            what,
            f"the same with `--store`: {size / submissions:.0f} bytes a submission",
            f"{recorded:.0f} a second",
            f"{kept:.3f} of it without",
            "≥ 0.97",
            kept >= 0.97,
        ),
    ]


def main() -> int:
    """Prints the rows; the exit code is 0 if every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--submissions", type=int, default=1500)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} before the first round")
    found = rows(options.rounds, options.submissions)
    print(*found, sep="\n")
    return 1 if any(row.passed is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
