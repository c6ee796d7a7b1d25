"""Measures crash points: a traced run beside strace's, a payload under the tracer, and a sweep beside a loop of strace.

Part of run.py's page; run alone, it prints its rows. As root, on x86-64, with bubblewrap.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Row, interleaved, timed

from leakcheck.arena import Arena, Trace
from leakcheck.campaigns import Crash, CrashOptions, run
from leakcheck.submissions import BUILTIN
from leakcheck.targets import Box, Target, builtin
from leakcheck.trials.crash_points import recording_of
from leakcheck.trials.output import memory, text
from leakcheck.warden import shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "rust/warden/src/trace/x86_64.rs"
# The newest call of Linux 5.17, which strace 6.1 knows.
NEWEST = 450
# Prints the milliseconds that its own calls take.
PAYLOAD = """#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int n = 0; n < 60000; n++) {
    int fd = open("/tmp/file", O_CREAT | O_WRONLY, 0600);
    if (write(fd, "x", 1) != 1 || close(fd)) return 1;
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  printf("%.3f\\n", (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6);
}
"""
# What one would write today: the N-th of the calls kills, then three commands show what is left. A second look tells
# what stays from what takes a moment to end. What strace waits for may never end.
LOOP = """calls=$1; last=$2; shift 2
look() {
  ps -eo pid=,args= | grep -v 'calls=\\|ps -eo\\|sort$'; cat /proc/mounts; find /tmp /run /dev/shm /var/tmp
}
n=1
while [ $n -le $last ]; do
  look | sort >/opt/before
  timeout -k 1 2 strace -f -o /dev/null -e trace=$calls -e inject=$calls:signal=KILL:when=$n "$@" >/dev/null 2>&1
  look | sort >/opt/after
  cmp -s /opt/before /opt/after || { sleep 0.5; look | sort >/opt/after; }
  comm -13 /opt/before /opt/after | sed "s/^/$n left /"
  comm -13 /opt/before /opt/after | while read -r pid rest; do kill -9 "$pid"; done 2>/dev/null
  n=$((n + 1))
done
echo "$n done"
"""


def rows(rounds: int, kills: int) -> list[Row]:
    """All rows; none if nothing can be traced."""
    target = next(one for one in builtin() if one.name == "bwrap")
    if os.geteuid() != 0 or os.uname().machine != "x86_64" or target.availability().state != "ready":
        return [Row("crash points", "", "need root, x86-64 and bubblewrap")]
    try:
        return [*one_run(target, rounds), payload(target, rounds), *sweep(target, kills)]
    finally:
        shutdown()


def traced_calls() -> str:
    """The numbers of all calls at which the tracer stops, for strace, but for those that it is too old to know."""
    table = TABLE.read_text().partition("ROWS: &[Row] = &[")[2].partition("\n];")[0]
    numbers = {int(number) for number in re.findall(r'row\("\w+", (\d+)', table)}
    return ",".join(str(number) for number in sorted(numbers) if number <= NEWEST)


@contextlib.contextmanager
def one_cpu() -> Iterator[int]:
    """Keeps this process, and what it starts, on one CPU: across CPUs a stop takes five times as long."""
    cpus = os.sched_getaffinity(0)
    shutdown()
    os.sched_setaffinity(0, {max(cpus)})
    try:
        yield max(cpus)
    finally:
        shutdown()
        os.sched_setaffinity(0, cpus)


def launch(target: Target, program: tuple[str, ...]) -> list[str]:
    """Bubblewrap's command line for a program."""
    submission = BUILTIN["ok"]
    box = Box(number=0, work=Path("/var/lib/leakcheck-campaign/box"))
    whole = target.launch(submission, box).argv
    return [*whole[: -len(submission.program)], *program]


def traced(arena: Arena, argv: list[str], program: tuple[str, ...], cpu: int, output: int | None = None) -> None:
    """Runs it to its end, recording every point."""
    log = os.memfd_create("log")
    try:
        request = recording_of()("launch", 0, program)
        assert request
        null = subprocess.DEVNULL
        process = arena.popen(argv, stdout=output or null, stderr=null, trace=Trace({**request, "cpu": cpu}, log))
        with process:
            if process.wait(60):
                raise AssertionError(f"{argv} ended with {process.returncode}")
    finally:
        os.close(log)


def one_run(target: Target, rounds: int) -> list[Row]:
    """A run with all its points recorded, beside strace's of the same calls."""
    program = ("/bin/true",)
    argv = launch(target, program)
    null = subprocess.DEVNULL
    with one_cpu() as cpu, Arena() as arena:

        def plain(*before: str) -> Callable[[], object]:
            return lambda: arena.run([*before, *argv], stdout=null, stderr=null, timeout=60)

        strace = ["strace", "-f", "-o", "/dev/null"]
        contestants = {"bare": plain(), "leakcheck": lambda: traced(arena, argv, program, cpu)}
        if shutil.which("strace"):
            contestants["bpf"] = plain(*strace, "--seccomp-bpf", "-e", f"trace={traced_calls()}")
            contestants["strace"] = plain(*strace)
        times = {name: statistics.median(some) for name, some in interleaved(contestants, rounds).items()}
    bare, ours = times["bare"], times["leakcheck"]
    what = "a run of bubblewrap, on one CPU"
    found = [Row(what, "bare", f"{bare:.1f} ms"), Row(what, "all its crash points recorded", f"{ours:.1f} ms")]
    if "bpf" in times:
        ratio, above = times["bpf"] / ours, (ours - bare) / (times["strace"] - bare)
        how = "`strace -f --seccomp-bpf -e trace=` the same calls"
        found.append(Row(what, how, f"{times['bpf']:.1f} ms", f"{ratio:.1f} times", "≥ 1 times", ratio >= 1))
        compared = f"leakcheck adds {above:.2f} of what it adds"
        found.append(Row(what, "`strace -f`", f"{times['strace']:.1f} ms", compared, "≤ 0.5", above <= 0.5))
    return found


def payload(target: Target, rounds: int) -> Row:
    """A payload that makes many calls, under the tracer and without it."""
    what = "60,000 times open, write and close by a payload in bubblewrap"
    if (compiler := shutil.which("cc")) is None:
        return Row(what, "", "no C compiler")
    with one_cpu() as cpu, Arena() as arena, memory() as source:
        os.write(source, PAYLOAD.encode())
        with Path(f"/proc/self/fd/{source}").open() as given:
            arena.run([compiler, "-O2", "-x", "c", "-o", "/opt/payload", "-"], stdin=given.fileno())
        program = ("/opt/payload",)
        argv = launch(target, program)
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(max(3, rounds // 3)):
            for is_traced, times in took.items():
                with memory() as output:
                    if is_traced:
                        traced(arena, argv, program, cpu, output)
                    else:
                        arena.run(argv, stdout=output, timeout=60)
                    times.append(float(text(output)))
    bare, ours = (statistics.median(took[one]) for one in (False, True))
    return Row(what, "traced", f"{ours:.1f} ms", f"{ours / bare:.2f} times untraced", "≤ 1.1 times", ours <= bare * 1.1)


def sweep(target: Target, kills: int) -> list[Row]:
    """Kills at all points, beside a loop of strace that kills at the N-th of the same calls."""
    options = CrashOptions(schedule="immediate", iterations=kills)
    result = run(Crash(), target, options)
    ours = any(leak.kind == "process" for finding in result.findings for leak in finding.leaks)
    how = "`leakcheck crash --target bwrap --schedule immediate`"
    found = [Row("kills of bubblewrap", how, f"{result.rate:.1f} a second", f"{len(result.findings)} findings")]
    if not shutil.which("strace"):
        return found
    last = 40
    with Arena() as arena, memory() as output:
        loop = ["/bin/sh", "-c", LOOP, "loop", traced_calls(), str(last), *launch(target, BUILTIN["ok"].program)]
        took = timed(lambda: arena.run(loop, stdout=output, timeout=300))
        lines = [line.split(" left ", 1)[1] for line in text(output).splitlines() if " left " in line]
    rate = last * 1000 / took
    kinds = {"process" if line.split()[0].isdecimal() else "mount or file" for line in lines}
    if kinds - ({"process"} if ours else set()):
        raise AssertionError(f"the loop found more than leakcheck: {lines}")
    how = "`strace --inject …:signal=KILL:when=N`, then `ps`, `cat /proc/mounts`, `find`"
    ratio = result.rate / rate
    compared = f"{ratio:.1f} times, {len(lines)} findings"
    return [*found, Row("kills of bubblewrap", how, f"{rate:.1f} a second", compared, "≥ 1 times", ratio >= 1)]


def main() -> int:
    """Prints the rows; the exit code is 0 if every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} before the first round")
    found = rows(options.rounds, options.kills)
    print(*found, sep="\n")
    return 1 if any(row.passed is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
