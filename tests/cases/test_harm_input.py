"""Bad input: one clear line, the exit code of the contract, in bounded time and memory."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leakcheck import Report, UsageError

LEAKCHECK = [sys.executable, "-m", "leakcheck"]


def leakcheck(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*LEAKCHECK, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, **options}
    return subprocess.run(command, text=True, errors="backslashreplace", check=False, **options)


def is_one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stderr.startswith("leakcheck: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


USES: dict[str, Callable[[object], list[object]]] = {
    "report": lambda path: ["reap", "--diff", path],
    "snapshot": lambda path: ["diff", path, path],
    "allow file": lambda path: ["guard", "--allow", path, "--", "false"],
    "adapter": lambda path: ["leaks", "--target", path, "--iterations", "1"],
}


@pytest.fixture
def named(tmp_path: Path) -> Callable[[str], Path]:
    """Return a path with the ending that an adapter needs."""
    return lambda name: tmp_path / f"{name}.toml"


@pytest.mark.parametrize("use", USES)
def test_no_input_is_read_without_bound(use: str, named: Callable[[str], Path]) -> None:
    zero, large, fifo, directory = named("zero"), named("large"), named("fifo"), named("directory")
    zero.symlink_to("/dev/zero")
    with large.open("wb") as sparse:
        sparse.truncate(1 << 30)
    os.mkfifo(fifo)
    directory.mkdir()
    device = "it is a device or a socket, not a file"
    for path, why in ((zero, device), (large, "is larger than"), (fifo, ""), (directory, "is a directory")):
        told = is_one_line(leakcheck(*USES[use](path)))
        assert why in told, told


def test_an_endless_pipe_ends() -> None:
    zero = subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE)
    assert zero.stdout is not None
    try:
        done = leakcheck("guard", "--allow", "/dev/stdin", "--", "false", stdin=zero.stdout)
    finally:
        zero.stdout.close()
        zero.wait()
    assert "is larger than 1 MiB" in is_one_line(done)


def test_a_pipe_is_an_input_like_a_file(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.json"
    assert leakcheck("snapshot", "--kinds", "process", "-o", snapshot).returncode == 0
    script = f'"$@" diff <(cat {snapshot}) <(sleep 0.2; cat {snapshot}) --json'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *LEAKCHECK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


BAD = {
    "empty": b"",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep in a field": b'{"schema":"leakcheck.report/1","leaks":' + b"[" * 100_000,
    "deep TOML": b"a = " + b"[" * 100_000,
    "dotted TOML": b"[" + b"a." * 10_000 + b"a]",
    "not UTF-8": b'{"schema": "\xff"}',
    "NUL": b"\0" * 100,
    "NaN": b'{"schema":"leakcheck.report/1","noise":NaN}',
    "huge number": b'{"schema":"leakcheck.report/1","noise":' + b"9" * 5000 + b"}",
    "a number": b"1e999",
    "other types": b'{"schema":"leakcheck.report/1","leaks":7,"verdict":[]}',
}


@pytest.mark.parametrize("use", USES)
def test_what_is_malformed_is_told_in_one_line(use: str, named: Callable[[str], Path]) -> None:
    for name, content in BAD.items():
        if use == "allow file" and name == "empty":
            continue  # It has no rule, which is no mistake.
        path = named(name.replace(" ", "-"))
        path.write_bytes(content)
        is_one_line(leakcheck(*USES[use](path)))


def test_every_field_of_a_report_may_have_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    script = f"sleep 300 </dev/null >/dev/null 2>&1 & echo $! >{tmp_path}/pid"
    made = leakcheck("guard", "--kinds", "process", "--settle", "0.05", "-o", path, "--", "sh", "-c", script)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert made.returncode == 1, made.stderr
    report = json.loads(path.read_text())
    for wrong in (None, True, -1, 1 << 70, 1.5, "x", [], {}, [[]], {"a": {}}):
        for name in report:
            text = json.dumps({**report, name: wrong})
            try:
                Report.from_json(text)
            except UsageError as error:
                assert "\n" not in str(error)
        for name in report["leaks"][0]:
            text = json.dumps({**report, "leaks": [{**report["leaks"][0], name: wrong}]})
            try:
                Report.from_json(text)
            except UsageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ["guard", "--scope", b"cgroup:\xff", "--", "true"],
        ["guard", "--kinds", b"\xff", "--", "true"],
        ["guard", "--settle", b"\xff", "--", "true"],
        ["guard", "--roots", b"/\xff", "--", "true"],
        ["guard", "--allow", b"/\xff", "--", "true"],
        ["guard", "-o", b"/\xff/x", "--", "true"],
        ["guard", "--arena", "--limit", b"\xff=1", "--", "true"],
        ["reap", "--diff", b"\xff"],
        ["diff", b"\xff", b"\xff"],
        ["leaks", "--target", b"\xff"],
        ["stress", "--submission", b"\xff"],
        [b"\xff"],
    ],
)
def test_a_value_that_is_no_utf_8_is_told_in_one_line(arguments: list[object]) -> None:
    done = leakcheck(*arguments)
    assert done.returncode in (2, 3, 4), done.stderr
    assert "internal error" not in is_one_line(done, done.returncode)


def test_a_file_name_that_is_no_utf_8_is_a_file_name(tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/\xff.json"
    done = leakcheck("guard", "--kinds", "process", "--settle", "0.05", "-o", out, "--", "true")
    assert done.returncode == 0, done.stderr
    assert leakcheck("reap", "--diff", out).returncode == 0


@pytest.mark.parametrize(("mib", "code"), [(196, 0), (140, 0), (100, 2), (60, 2)])
def test_a_memory_limit_is_enough_or_told(mib: int, code: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    options = ["--settle", "0.05", "--kinds", "process,fd,mount,file", "--roots", tmp_path]
    done = leakcheck("guard", *options, "--", "true", preexec_fn=limit)
    if code:
        assert f"limited to {mib} MiB" in is_one_line(done, code)
    else:
        assert done.returncode == 0, done.stderr


def test_a_memory_limit_that_the_run_lowers_is_told() -> None:
    lower = "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_AS, (1 << 20, 1 << 20))"
    done = leakcheck("guard", "--kinds", "process", "--", sys.executable, "-c", lower)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (3, "leakcheck: unknown: out of memory")


def test_a_command_without_disk_or_shell_is_told(tmp_path: Path) -> None:
    assert shutil.which("true")
    done = leakcheck("guard", "--kinds", "process", "--", tmp_path / "none")
    assert "no such file" in is_one_line(done, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_a_working_directory_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    guard = shlex.join([sys.executable, "-P", "-m", "leakcheck", "guard", "--arena", "--", "true"])
    script = f"cd {tmp_path} && rmdir {tmp_path} && exec {guard}"
    done = subprocess.run(
        ["sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "working directory" in done.stderr
