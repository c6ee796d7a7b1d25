"""Measures leakcheck beside psutil, lsof and lsfd, arenas and refbox beside bubblewrap; writes the page.

The page is docs/reference/performance.md.

All of them look at the same machine in the same minutes: rounds are interleaved (A B C D, A B C D …), so that a slow
minute of the machine is slow for everybody, and medians are compared. Ends with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import select
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import arenas
import cluster
import crash
import peers
import psutil
import soak
import stress
import suite
from measure import Row, interleaved, middle, timed

from leakcheck import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reference" / "performance.md"
READY_WITHIN = 120.0
WHOLE = "processes and FDs, whole machine"


@dataclass(frozen=True)
class Load:
    """A running load: its processes and how many FDs they have together."""

    pids: frozenset[int]
    fds: int


@contextlib.contextmanager
def load(processes: int, cgroup: Path | None = None) -> Iterator[Load]:
    """Runs benches/load.py; it takes its processes down when its standard input closes."""
    argv = [sys.executable, str(HERE / "load.py"), "--processes", str(processes)]
    if cgroup:
        argv += ["--cgroup", str(cgroup)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        if not select.select([program.stdout], [], [], READY_WITHIN)[0]:
            raise TimeoutError(f"{argv} is not ready after {READY_WITHIN:.0f} s")
        line = program.stdout.readline()
        words = line.split()
        if words[:1] != ["READY"]:
            raise RuntimeError(f"{argv} said {line!r} and not READY")
        children = frozenset(child.pid for child in psutil.Process(program.pid).children())
        yield Load(children, int(words[2]))


@contextlib.contextmanager
def own_cgroup() -> Iterator[Path | None]:
    """A cgroup for the scope's processes, in the first hierarchy that allows one; None if none does."""
    for mount in [d.mountpoint for d in psutil.disk_partitions(all=True) if d.fstype == "cgroup2"] + [
        d.mountpoint for d in psutil.disk_partitions(all=True) if d.fstype == "cgroup" and "pids" in d.opts.split(",")
    ]:
        path = Path(mount) / f"leakcheck-bench-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            yield path
        finally:
            path.rmdir()
        return
    yield None


@contextlib.contextmanager
def realtime(wanted: bool) -> Iterator[None]:
    """Keeps other programs off the CPUs; programs started inside inherit the priority (sched(7))."""
    if not wanted:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def prove_same(standing: Load) -> None:
    """Fails unless leakcheck and psutil + readlink see the same processes and targets of the load."""
    peers.until_blocked(standing.pids)
    native = peers.of_native(_native.snapshot(kinds="process,fd"), standing.pids)
    peer = {pid: seen for pid, seen in peers.with_psutil().items() if pid in standing.pids}
    if native != peer:
        wrong = [pid for pid in standing.pids if native.get(pid) != peer.get(pid)]
        raise AssertionError(f"{len(wrong)} processes differ, first: {native.get(wrong[0])} {peer.get(wrong[0])}")


def whole_machine(processes: int, rounds: int, *, first: bool) -> tuple[list[Row], str]:
    """Process + FD snapshot under load: native against its peers. `first`: before all else that wants a CPU."""
    contestants: dict[str, Callable[[], object]] = {
        "native": lambda: _native.snapshot(kinds="process,fd"),
        "psutil": peers.with_psutil,
        "psutil, remembering": lambda: peers.with_psutil(fresh=False),
    }
    commands = {"lsof": ["lsof", "-nPw"], "lsfd": ["lsfd"]}
    for name, argv in commands.items():
        if shutil.which(argv[0]):
            contestants[name] = lambda argv=argv: peers.with_command(argv)
    limits = {"psutil": 3.5, "lsof": 8.0, "lsfd": 25.0}
    says = {
        "native": '`leakcheck._native.snapshot(kinds="process,fd")`',
        "psutil": "`psutil.process_iter()`, `oneshot()`, `os.readlink()` of each `/proc/PID/fd/N`",
        "psutil, remembering": "the same with the start times that an earlier `process_iter()` read",
        "lsof": "`lsof -nPw`, output to a file",
        "lsfd": "`lsfd`, output to a file",
    }
    with load(processes) as standing:
        prove_same(standing)
        with realtime(first):
            times = interleaved(contestants, rounds)
            diff = equal_diff(rounds * 4)
    native = statistics.median(times["native"])
    rows = []
    for name, says_how in says.items():
        if name not in times:
            rows.append(Row(WHOLE, says_how, "not installed", "", "", passed=False))
            continue
        median = statistics.median(times[name])
        ratio = median / native
        limit = limits.get(name)
        compared = "" if name == "native" else f"{ratio:.1f} times"
        target = f"≥ {limit:g} times" if limit else ""
        passed = ratio >= limit if limit else None
        rows.append(Row(WHOLE, says_how, f"{median:.1f} ms", compared, target, passed))
    return [*rows, diff], f"{len(standing.pids):,} processes with {standing.fds:,} FDs"


def equal_diff(rounds: int) -> Row:
    """Diff of two equal snapshots of the load."""
    before = _native.snapshot(kinds="process,fd")
    after = _native.Snapshot.from_json(before.to_json())
    median = statistics.median(timed(lambda: _native.diff(before, after)) for _ in range(rounds))
    what = f"diff of two equal snapshots of {before.count('fd'):,} FDs"
    return Row(what, "`leakcheck._native.diff(a, b)`", f"{median:.2f} ms", "", "≤ 1 ms", median <= 1)


def cgroup_scope(rounds: int, *, first: bool) -> list[Row]:
    """Snapshots of a cgroup with ten processes."""
    with own_cgroup() as path:
        if path is None:
            return [Row("`cgroup:` scope", "", "no cgroup can be made here", "", "< 0.6 ms", None)]
        with load(10, path) as standing:
            scope = f"cgroup:{path}"
            kinds = {"process,fd,cgroup": "< 0.6 ms", "": ""}
            contestants = {k: lambda k=k: _native.snapshot(scope=scope, kinds=k or None) for k in kinds}
            with realtime(first):
                times = interleaved(contestants, rounds)
            every = ",".join(_native.snapshot(scope=scope).kinds)
    rows = []
    for names, target in kinds.items():
        median = statistics.median(times[names])
        what = f"`cgroup:` scope, {len(standing.pids)} processes, {standing.fds} FDs"
        how = f'`snapshot(scope="cgroup:…", kinds="{names}")`' if names else f"every kind of the scope ({every})"
        rows.append(Row(what, how, f"{median:.3f} ms", "", target, median < 0.6 if target else None))
    return rows


def quiet_machine(rounds: int) -> list[Row]:
    """The cost of one snapshot, and of one guard around nothing, without the load."""

    def guard() -> object:
        return _native.Guard().end()

    times = interleaved({"host": _native.snapshot, "guard": guard}, rounds)
    seen = len(_native.snapshot())
    return [
        Row(f"every kind, whole machine, no load ({seen:,} resources)", "`snapshot()`", middle(times["host"])),
        Row("guard around nothing, no load", "`Guard().end()`", middle(times["guard"])),
    ]


def start_up(rounds: int) -> list[Row]:
    """What the library and the command take to start, above Python itself."""
    python = sys.executable
    limits = {"import leakcheck": 40, "leakcheck --help": 120}
    argv = {
        "python -c pass": [python, "-c", "pass"],
        "import leakcheck": [python, "-c", "import leakcheck"],
        "leakcheck --help": [python, "-m", "leakcheck", "--help"],
    }
    null = subprocess.DEVNULL
    starts = {name: lambda one=one: subprocess.run(one, stdout=null, check=True) for name, one in argv.items()}
    times = interleaved(starts, rounds)
    bare = statistics.median(times.pop("python -c pass"))
    above = {name: statistics.median(some) - bare for name, some in times.items()}
    compared = f"above the {bare:.0f} ms of `python -c pass`"
    return [
        Row("start-up", f"`{name}`", f"{ms:.0f} ms", compared, f"≤ {limits[name]} ms", ms <= limits[name])
        for name, ms in above.items()
    ]


def endurance(snapshots: int) -> Row:
    """Many snapshots in a separate process."""
    result = soak.in_own_process(snapshots)
    measured = f"RSS {result.growth_kib:+d} KiB, FDs {result.fds_left:+d}, {result.seconds:.0f} s"
    passed = result.growth_kib <= soak.NOISE_KIB and result.fds_left == 0
    return Row(
        f"{result.snapshots:,} snapshots in one process, after the first {soak.WARM_UP}",
        f'`snapshot(kinds="{soak.KINDS}")`',
        measured,
        "",
        f"no growth (≤ {soak.NOISE_KIB} KiB), no FD",
        passed,
    )


def version(argv: list[str]) -> str:
    """The version that a tool prints, wherever it prints it."""
    with contextlib.suppress(OSError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if found := re.search(r"(?:revision: |util-linux )(\S+)", done.stdout + done.stderr):
            return found[1]
    return "not installed"


def machine() -> str:
    """The facts that the numbers depend on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpus = len(os.sched_getaffinity(0))
    pressure = Path("/proc/pressure/cpu")
    waited = re.search(r"avg60=([\d.]+)", pressure.read_text()) if pressure.exists() else None
    return "\n".join([
        f"- Linux {platform.release()}, {cpus} CPUs ({model[1] if model else platform.machine()}), "
        f"{psutil.virtual_memory().total >> 20:,} MiB",
        f"- load average {os.getloadavg()[0]:.1f} before the first round"
        + (f"; {waited[1]} % of the minute before it something waited for a CPU" if waited else ""),
        f"- leakcheck {_native.__version__}, Python {platform.python_version()}, psutil {psutil.__version__}, "
        f"lsof {version(['lsof', '-v'])}, util-linux (lsfd) {version(['lsfd', '--version'])}",
    ])  # fmt: skip


PAGE_TEXT = """# Performance

Written by `make bench`; not edited by hand. Medians of {rounds} interleaved rounds on one machine, in one run.

{machine}
- the load of the whole-machine rows: {load}, a quarter each of files, pipe ends, sockets and anonymous inodes

| what | how | median | against leakcheck | target | |
|---|---|---|---|---|---|
{rows}

Before the rounds, the run fails unless leakcheck and psutil with `readlink` see the same pid, start time, state, parent
and target of every FD of the load. leakcheck's time includes more than that: device, inode and mount of each file, the
id of each eventfd, and which sockets hold descriptors in flight.

psutil is compared by the row in which it reads what leakcheck reads. `process_iter()` keeps its objects and then gives
the start time that it remembers, which is not a reading: it would not notice a reused pid. Both rows are shown.
"""


def main() -> int:
    """Measures and writes the page; the exit code is 0 if every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=10_000)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="time at real-time priority, on a machine that is busy otherwise",
    )
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    facts = machine()
    if options.realtime:
        facts += "\n- timed at real-time priority (`--realtime`), but for the rows without load: the machine was busy"
    rows, described = whole_machine(options.processes, options.rounds, first=options.realtime)
    rows += cgroup_scope(options.rounds * 20, first=options.realtime)
    rows += quiet_machine(options.rounds)
    rows += start_up(options.rounds)
    rows += suite.rows(max(1, options.rounds // 5))
    rows += arenas.rows(options.rounds * 4, options.rounds * 6)
    rows += stress.rows(options.rounds * 3, options.rounds * 100)
    rows += crash.rows(options.rounds * 2, 0)
    rows += cluster.rows(3)
    rows.append(endurance(options.snapshots))
    table = "\n".join(map(str, rows))
    page = PAGE_TEXT.format(rounds=options.rounds, machine=facts, load=described, rows=table)
    partial = options.output.with_suffix(".partial")
    partial.write_text(page)
    partial.replace(options.output)
    print(page)
    missed = [row for row in rows if row.passed is False]
    for row in missed:
        print(f"missed: {row.what}: {row.how}: {row.median} {row.compared}, target {row.target}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
