"""Checks an adapter, also somebody else's, against a run of the real sandbox.

``python -m leakcheck.conformance bwrap`` or ``… ./mine.toml`` prints what it found; exit code 1 when a check
failed, 4 when the target cannot be run here. Everything runs in an arena, so that nothing outlives the check.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from leakcheck._native import UsageError
from leakcheck.arena import Arena
from leakcheck.render import printable
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.supervise import TargetError
from leakcheck.targets import Availability, Box, Outcome, Target, load

__all__ = ["CHECKS", "Finding", "check", "enclosed", "tried"]

CHECKS = ("probe", *BUILTIN, "recovery")
"""What `check` does, in order."""

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
# Beyond a submission's wall limit: start, teardown, and a machine under load.
_GRACE = 30.0
_START = 20.0
# What an arena has anew: what is needed of the host's has to be bound.
_FRESH = ("/tmp", "/run", "/var/tmp", "/dev/shm")  # noqa: S108 - names to compare with, nothing is made there
# Every check of an arena, beside the runs' own limits.
_LIMIT = 600.0


class Finding(msgspec.Struct, frozen=True):
    """What one check of `CHECKS` gave; `detail` says what was wrong."""

    check: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


class _Run(msgspec.Struct, frozen=True):
    returncode: int
    stdout: str
    stderr: str


class _Bench:
    """A directory of its own under /tmp with one box, and what runs in it."""

    def __init__(self, target: Target, base: Path) -> None:
        self.target = target
        self.base = base
        self.marker = base / "marker"
        self.marker.touch()
        self.box = Box(number=0, work=base / "box", name=f"leakcheck-{target.name}-{os.getpid()}")
        self.box.work.mkdir()

    def commands(self, what: str, commands: Iterable[Sequence[str]]) -> None:
        for argv in commands:
            done = self._run(argv, _GRACE)
            if done.returncode != 0:
                raise TargetError(f"{what} command {argv[0]} ended with {done.returncode}: {_last(done)}")

    def recover(self) -> None:
        self.commands("recover", self.target.recover_commands(self.box))

    def prepare(self, submission: Submission) -> list[str]:
        self.commands("prepare", self.target.prepare_commands(self.box))
        launch = self.target.launch(submission, self.box)
        launch.write()
        return launch.argv

    def run(self, submission: Submission) -> _Run:
        return self._run(self.prepare(submission), submission.wall + _GRACE)

    def outcome(self, submission: Submission) -> tuple[Outcome, _Run]:
        done = self.run(submission)
        return self.target.status(done.returncode, self.box), done

    def start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        # Files, not pipes: an orphan that held a pipe would keep us waiting.
        with (self.base / "stdout").open("wb") as out, (self.base / "stderr").open("wb") as err:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
                env=os.environ | self.target.env(self.box),
                start_new_session=True,
            )

    def output(self, name: str) -> str:
        return (self.base / name).read_text(encoding="utf-8", errors="replace")

    def _run(self, argv: Sequence[str], limit: float) -> _Run:
        with self.start(argv) as child:
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired as error:
                child.kill()
                child.wait()
                raise TargetError(f"{argv[0]} was still running after {limit:.0f} s, and was killed") from error
        return _Run(child.returncode, self.output("stdout"), self.output("stderr"))


def check(target: Target, only: Sequence[str] = CHECKS) -> list[Finding]:
    """Run the checks `only` of `target` where the caller is, and return what each found.

    A crash leaves processes behind where the target does not recover them: run it where those cannot matter, as
    `enclosed` does.
    """
    unknown = [one for one in only if one not in CHECKS]
    if unknown:
        raise UsageError(f"unknown check {unknown[0]!r}: one of {', '.join(CHECKS)}")
    findings = []
    with tempfile.TemporaryDirectory(prefix="leakcheck-", dir="/tmp", ignore_cleanup_errors=True) as base:
        bench = _Bench(target, Path(base))
        for one in only:
            began = time.monotonic()
            try:
                detail = _detail(bench, one)
            except (TargetError, OSError) as error:
                detail = str(error)
            findings.append(Finding(one, not detail, detail, round(time.monotonic() - began, 3)))
        try:
            bench.recover()
        except (TargetError, OSError) as error:
            findings.append(Finding("recovery", passed=False, detail=f"at the end: {error}"))
    return findings


def _detail(bench: _Bench, one: str) -> str:
    if one == "probe":
        return _probe(bench)
    if one == "recovery":
        return _recovery(bench)
    return _submission(bench, BUILTIN[one])


def _probe(bench: _Bench) -> str:
    done = bench.run(bench.target.probe(bench.marker))
    gaps = bench.target.isolation_gaps(done.stdout, _outside(), os.uname().version)
    return "; ".join(gaps) + (f" ({_last(done)})" if gaps else "")


def _outside() -> dict[str, str]:
    return {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in _NAMESPACES}


def _submission(bench: _Bench, submission: Submission) -> str:
    outcome, done = bench.outcome(submission)
    wrong = []
    if outcome.verdict != submission.expect:
        wrong.append(f"verdict {outcome.verdict} instead of {submission.expect}")
    if submission.expect_exit is not None and outcome.exit_code != submission.expect_exit:
        wrong.append(f"exit code {outcome.exit_code} instead of {submission.expect_exit}")
    lacks = bench.target.adapter.may_lack_signal and outcome.signal is None
    if submission.expect_signal is not None and outcome.signal != submission.expect_signal and not lacks:
        wrong.append(f"signal {outcome.signal} instead of {submission.expect_signal}")
    return f"{', '.join(wrong)}; it ended with {done.returncode}: {_last(done)}" if wrong else ""


def _recovery(bench: _Bench) -> str:
    """Kill the supervisor while the payload runs, recover twice, and run the next submission in that box."""
    long = Submission(name="long", program=("/bin/sh", "-c", "echo started; sleep 600; exit 0"), wall=60)
    with bench.start(bench.prepare(long)) as supervisor:
        until = time.monotonic() + _START
        while "started" not in bench.output("stdout"):
            if supervisor.poll() is not None or time.monotonic() > until:
                supervisor.kill()
                return f"the payload did not start: {bench.output('stderr').strip()[-300:]}"
            time.sleep(0.01)
        supervisor.kill()
    bench.recover()
    bench.recover()
    wrong = _submission(bench, BUILTIN["ok"])
    return f"after the recovery: {wrong}" if wrong else ""


def _last(done: _Run) -> str:
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return printable(" | ".join(lines[-3:]))[-400:] or "it printed nothing"


def enclosed(target: Target, only: Sequence[str] = CHECKS) -> list[Finding]:
    """Do as `check` in an arena, with which all that was started and left goes away.

    Raises:
        TargetError: there could be no arena, or the check itself ended before it had an answer.
    """
    path = target.path.resolve()
    inner = [sys.executable, "-m", "leakcheck.conformance", "--json", "--here", str(path), *only]
    needed = [path, Path(sys.prefix), Path(__file__).parents[1]]
    needed += [Path(program) for program in target.found().values() if program]
    shown = {str(one if one.is_dir() else one.parent) for one in needed if str(one).startswith(_FRESH)}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        Arena(binds=[(one, one, True) for one in sorted(shown)]) as arena,
    ):
        code = arena.run(inner, timeout=_LIMIT, stdout=out.fileno(), stderr=err.fileno())
        out.seek(0)
        err.seek(0)
        try:
            return msgspec.json.decode(out.read(), type=list[Finding])
        except msgspec.DecodeError as error:
            said = printable(err.read().decode(errors="replace").strip())[-400:]
            raise TargetError(f"{target.name}: the check itself ended with {code}: {said}") from error


def tried(target: Target) -> Availability:
    """Return the availability of `target`, and find out by the submission ``ok``, in an arena, whether it can run."""
    state = target.availability()
    if state.state != "ready":
        return state
    failed = next((finding for finding in enclosed(target, ["ok"]) if not finding.passed), None)
    if failed is None:
        return state
    return Availability("unable", f"tried: {failed.detail}", f"more: python -m leakcheck.conformance {target.name}")


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m leakcheck.conformance TARGET``; ``--json --here PATH CHECK…`` is for `enclosed`."""
    if arguments[:2] == ["--json", "--here"]:
        path, *only = arguments[2:]
        sys.stdout.buffer.write(msgspec.json.encode(check(load(path), only)))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m leakcheck.conformance TARGET|ADAPTER.toml", file=sys.stderr)
        return 2
    try:
        target = load(arguments[0])
        state = target.availability()
        if state.state != "ready":
            raise TargetError(f"{target.name}: {state.state}: {state.reason}; {state.hint}")
        findings = enclosed(target)
    except UsageError as error:
        print("leakcheck:", error, file=sys.stderr)
        return 2
    except TargetError as error:
        print("leakcheck:", error, file=sys.stderr)
        return 4
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'} {finding.check:<13} {finding.seconds:6.2f} s  {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
