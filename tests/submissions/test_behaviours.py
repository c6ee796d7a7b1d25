"""Each behaviour in each language that is here does what its status says; what is hostile does it in an arena."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from leakcheck import Arena, _native
from leakcheck.errors import ArenaError
from leakcheck.report import Report
from leakcheck.submissions import BEHAVIOURS, LANGUAGES, Spec, Submission, build, spec
from leakcheck.targets.executables import binds
from leakcheck.trials.output import memory

MIB = 1 << 20
HERE = [name for name, language in LANGUAGES.items() if language.available().ready]
# Far beyond what any of them takes, under load too.
PATIENCE = 60


def each(*statuses: str, hostile: bool = False) -> list[Spec]:
    return [
        spec(language, behaviour.name)
        for language in HERE
        for behaviour in BEHAVIOURS.values()
        if language in behaviour.languages and behaviour.expect in statuses and behaviour.hostile == hostile
    ]


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MIB, 64 * MIB))


@contextlib.contextmanager
def started(
    submission: Submission, output: int = subprocess.DEVNULL
) -> Generator["subprocess.Popen[bytes]", None, None]:
    process = subprocess.Popen(
        submission.program,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.DEVNULL,
        preexec_fn=bounded,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"not in {PATIENCE} s: {what}"
        time.sleep(0.01)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("wanted", each("OK"), ids=lambda one: one.word)
def test_what_is_ok_ends_well_with_next_to_no_processor_time(wanted: Spec) -> None:
    with memory() as output, started(build(wanted), output) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        # The limit that is sampled is at least 10 s.
        assert usage.ru_utime + usage.ru_stime < 1
        printed = os.fstat(output).st_size
    match wanted.behaviour:
        case "output":
            assert printed == 64 << 10
        case "hello":
            assert printed == len("hello\n")
        case "memory":
            assert usage.ru_maxrss >= 16 << 10


@pytest.mark.parametrize("wanted", each("RE"), ids=lambda one: one.word)
def test_what_is_re_ends_by_its_exit_code_or_signal(wanted: Spec) -> None:
    with started(build(wanted)) as process:
        code = process.wait(PATIENCE)
    about = wanted.about
    if about.expect_exit is not None:
        assert code == about.expect_exit
    elif about.expect_signal is not None:
        assert code == -about.expect_signal
    elif wanted.behaviour == "abort":
        assert code == -signal.SIGABRT
    else:
        assert code not in (0, 64)


@pytest.mark.parametrize("wanted", [one for one in each("TLE") if one.behaviour == "spin"], ids=lambda one: one.word)
def test_what_spins_takes_processor_time_and_does_not_end(wanted: Spec) -> None:
    with started(build(wanted)) as process:
        wait_until("it spins", lambda: processor_seconds(process.pid) > 0.4)
        assert process.poll() is None


@pytest.mark.parametrize("language", HERE)
def test_what_sleeps_does_not_end_and_takes_no_processor_time(language: str) -> None:
    with started(build(spec(language, "sleep"))) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert processor_seconds(process.pid) < 1


@pytest.mark.parametrize("language", HERE)
def test_what_ignores_sigterm_does(language: str) -> None:
    with memory() as output, started(build(spec(language, "ignore_sigterm")), output) as process:
        wait_until("it is ready", lambda: os.pread(output, 9, 0) == b"ready\n")
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        # Any limit that is sampled is 1 s, or 2.
        assert BEHAVIOURS["ignore_sigterm"].number(spec(language, "ignore_sigterm").limits) == 600


@contextlib.contextmanager
def arena_for(submission: Submission, limits: dict[str, int | str]) -> Generator[Arena, None, None]:
    try:
        arena = Arena(binds=binds([submission.bundle]), limits=limits).up()
    except ArenaError as error:
        pytest.skip(str(error))
    try:
        yield arena
    finally:
        arena.down()


@pytest.mark.parametrize("wanted", each("MLE"), ids=lambda one: one.word)
def test_what_is_mle_is_killed_at_its_memory_limit(wanted: Spec) -> None:
    limit = "memory.max" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "memory.limit_in_bytes"
    submission = build(wanted)
    with arena_for(submission, {limit: submission.memory}) as arena:
        assert arena.run(submission.program, timeout=PATIENCE, stdout=subprocess.DEVNULL) == -signal.SIGKILL


@pytest.mark.parametrize("wanted", each("OLE"), ids=lambda one: one.word)
def test_what_is_ole_writes_more_than_its_limit(wanted: Spec) -> None:
    if wanted.behaviour == "flood":
        with memory() as output, started(build(wanted), output) as process:
            assert process.wait(PATIENCE) == 0
            assert os.fstat(output).st_size == 4 * wanted.limits.output
        return
    size = wanted.limits.file_size
    program = ["/usr/bin/prlimit", f"--fsize={size}", "--core=0", *build(wanted).program]
    assert subprocess.run(program, stdin=subprocess.DEVNULL, check=False).returncode == -signal.SIGXFSZ


LEFT = {
    "daemonise": {"process"},
    "temp_litter": {"file"},
    "shm_litter": {"ipc"},
    "sockets": {"process", "net"},
    "mounts": {"mount"},
}


@pytest.mark.parametrize("wanted", each("OK", hostile=True), ids=lambda one: one.word)
def test_what_is_hostile_is_ok_and_leaves_what_it_says(wanted: Spec) -> None:
    submission = build(wanted)
    with memory() as output, arena_for(submission, {"pids.max": 400}) as arena:
        before = _native.snapshot(arena=arena.view)
        code = arena.run(submission.program, timeout=PATIENCE, stdout=output, stderr=output)
        assert code == 0, os.pread(output, 4000, 0).decode()
        report = Report.from_json(_native.settle(before, settle_ms=100))
        # Java listens only until it ends.
        named = set() if wanted.word == "java/sockets" else LEFT.get(wanted.behaviour, set())
        assert {leak.kind for leak in report.leaks} >= named
        left = [os.pidfd_open(pid) for pid in arena.pids()]
    for pidfd in left:
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)


@pytest.mark.parametrize("language", [name for name in HERE if name in BEHAVIOURS["fork_bomb"].languages])
def test_a_fork_bomb_is_ok_too_where_a_limit_stops_it(language: str) -> None:
    wanted = spec(language, "fork_bomb", processes=64)
    submission = build(wanted)
    with arena_for(submission, {"pids.max": 30}) as arena:
        assert arena.run(submission.program, timeout=PATIENCE) == 0


def test_nothing_is_ever_without_bounds() -> None:
    for wanted in (*each("OK", "TLE", "MLE", "RE", "OLE"), *each("OK", hostile=True)):
        number = int(build(wanted).program[-1])
        assert number <= 1 << 30
        if wanted.about.ends_by:
            assert number == 600
        if wanted.behaviour == "fork_bomb":
            assert number <= 200
