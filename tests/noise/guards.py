"""Many guards of a clean bubblewrap run, several at once, amid noise: emits every report that is not as it should be.

All of it happens in a mount namespace of its own with an empty ``/tmp``: what else is in the host's would make every
look long. Everything else is the host's. The guards see one another's runs too, as on a busy judge.

Each line of output is a JSON object: a report that is not ``clean``, or what a worker measured, with its number of
``runs``; the last one is ``{"seconds": …, "acts": …}``, of the whole and of its noise.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import noise

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
CLEAN = (
    "bwrap",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
    "--unshare-all",
    "--die-with-parent",
    "true",
)


def emit(record):
    print(json.dumps(record), flush=True)


def judge(report, code):
    """Emit what is not as it should be."""
    if report["verdict"] == "clean" and code == 0:
        return
    lowered = {kind: seen for kind, seen in report["coverage"].items() if seen["level"] != "full"}
    emit(
        {
            "verdict": report["verdict"],
            "exit": code,
            "leaks": report["leaks"],
            "coverage": lowered,
            "settle": report["settle"],
        }
    )


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
        judge(report, code)
        total.update(begin_s=ready - began, run_s=ran - ready, end_s=time.monotonic() - ran)
        total.update(looks=report["settle"]["looks"], noise=report["noise"])
    mean = {what: round(value / runs, 4) for what, value in total.items()}
    emit({"runs": runs, "noise": total["noise"], "mean": mean, "cpu_s": sum(os.times()[:2])})


def command(runs):
    """Guard with the command itself."""
    argv = [Path(sys.executable).with_name("leakcheck"), "guard", "--json", "--", *CLEAN]
    for _ in range(runs):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        judge(json.loads(done.stdout), done.returncode)
    emit({"runs": runs})


HOW = {"library": library, "command": command}


def private_tmp():
    """Mount an empty /tmp, for this process and its children; a checkout below it stays where it is."""
    noise.call("unshare", noise.CLONE_NEWNS)
    noise.call("mount", None, b"/", None, noise.MS_REC | noise.MS_PRIVATE, None)
    checkout = os.open(CHECKOUT, os.O_PATH)
    noise.call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, b"mode=1777")
    if not CHECKOUT.exists():
        CHECKOUT.mkdir(parents=True)
        noise.call(
            "mount", b"/proc/self/fd/%d" % checkout, os.fsencode(CHECKOUT), None, noise.MS_BIND | noise.MS_REC, None
        )
    os.close(checkout)


@contextlib.contextmanager
def amid_noise():
    """Run the noise program around something; give the function that ends it and tells how much there was."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, HERE / "noise.py", *ROOTS], text=True, **pipes) as neighbour:
        try:
            if neighbour.stdout.readline() != "READY\n":
                raise SystemExit("guards.py: the noise did not begin")
            yield neighbour
        finally:
            neighbour.stdin.close()


def all_of(jobs):
    """Run one worker for each job at once; emit what they emitted."""
    running = []
    for how, runs in jobs:
        output = tempfile.TemporaryFile("w+", dir="/")  # noqa: SIM115
        argv = [sys.executable, __file__, "--worker", how, str(runs)]
        running.append((subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output), output))
    for worker, output in running:
        status = worker.wait()
        output.seek(0)
        sys.stdout.write(output.read())
        output.close()
        if status != 0:
            raise SystemExit(f"guards.py: a worker ended with {status}")


def shares(runs, workers):
    return [runs // workers + (number < runs % workers) for number in range(workers)]


def main():
    """Run one worker, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=HOW, help="only these runs, one after the other")
    parser.add_argument("--at-once", type=int, default=16, help="workers")
    parser.add_argument("--by-command", type=int, default=0, help="how many of the runs are by the command")
    parser.add_argument("runs", type=int)
    args = parser.parse_args()
    noise.call("prctl", noise.PR_SET_PDEATHSIG, signal.SIGKILL)
    if args.worker:
        return HOW[args.worker](args.runs)
    private_tmp()
    jobs = [("command", runs) for runs in shares(args.by_command, 2)]
    jobs += [("library", runs) for runs in shares(args.runs - args.by_command, args.at_once - 2)]
    with amid_noise() as neighbour:
        began = time.monotonic()
        all_of([(how, runs) for how, runs in jobs if runs])
        seconds = time.monotonic() - began
        if neighbour.poll() is not None:
            raise SystemExit("guards.py: the noise ended before the runs did")
        neighbour.stdin.close()
        acts = int(neighbour.stdout.read().split()[1])
    if neighbour.returncode != 0:
        raise SystemExit(f"guards.py: the noise ended with {neighbour.returncode}")
    emit({"seconds": round(seconds, 1), "acts": acts})
    return None


if __name__ == "__main__":
    main()
