"""What holds for every test."""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

_MARK = "LEAKCHECK_OWN_TEST"
_NUMBERS = itertools.count()
# What the interpreter keeps as its child until it ends itself.
_KEPT = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Generator[None, None, None]:
    """Let signals end the programs that tests start, even if this suite runs in a shell's background or under nohup(1).

    There SIGINT, SIGQUIT or SIGHUP is ignored, and every program that is started inherits that (execve(2)).
    """
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ignored = [number for number in defaults if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, defaults[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def no_runner() -> None:
    """Keep what tests find on purpose out of the annotations and the summary of a job that runs this suite."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pytest that a test starts be no worker of this one: --leakcheck attributes less in a worker of xdist."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def ends_what_it_starts() -> Generator[None, None, None]:
    """Fail a test whose processes outlive it, and kill these: they are known by a mark in their environment.

    What was started without it is found by the self-check of the whole suite, which does not know the test.
    """
    mark = f"{os.getpid()}-{next(_NUMBERS)}"
    before = os.environ.get(_MARK)
    os.environ[_MARK] = mark
    began = time.time()
    yield
    if before is None:
        del os.environ[_MARK]
    else:
        os.environ[_MARK] = before
    alive = _marked(mark, began)
    if alive:
        # The kernel and a warden may still be at it.
        _, alive = psutil.wait_procs(alive, timeout=60)
    names = []
    for process in alive:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.pid}: {process.cmdline()}")
            process.kill()
    assert not names, f"processes of the test live on: {names}"


def _marked(mark: str, began: float) -> list[psutil.Process]:
    text = f"{_MARK}={mark}".encode()
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            # Read as bytes: an environment may hold anything.
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            process = psutil.Process(pid)
            if process.ppid() == os.getpid() and any(name in " ".join(process.cmdline()) for name in _KEPT):
                continue
            if pid != os.getpid() and text in environment and process.create_time() >= began - 1:
                found.append(process)
    return found
