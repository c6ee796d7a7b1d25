"""A sweep on several workers is the same sweep: each shard's evidence is there in whole, or not at all."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import distributed
import pytest
from offspring import Offspring
from waiting import wait_until

from leakcheck.evidence import Store

LEAKCHECK = [sys.executable, "-m", "leakcheck"]
# The verdict phase of refbox has few points, its clean-up has many.
FEW = ("crash", "--target", "refbox", "--schedule", "immediate", "--phase", "verdict")
MANY = ("crash", "--target", "refbox", "--schedule", "immediate", "--phase", "cleanup")


def command(*words: object, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env=env,
    )


def plans(store: Path) -> list[str]:
    """Return the plans of the whole sweep of a store."""
    with Store(store, read_only=True) as opened:
        whole = [run for run in opened.runs() if run.options["shard"] == "1/1"]
        return sorted(str(trial.case.plan) for trial in opened.trials(whole[-1]))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """A scheduler and workers, as an operator starts them; the files of each are in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._directory = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        port = self.address.rpartition(":")[2]
        self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_for(self, workers: int) -> None:
        with distributed.Client(self.address, timeout=20, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=20)

    def worker(self, name: str, env: Sequence[tuple[str, str]] = ()) -> "subprocess.Popen[bytes]":
        place = self._directory / name
        place.mkdir()
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(place))
        return self._start("worker", self.address, *options, env=dict(env))

    def _start(self, what: str, *options: str, env: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        log = self._stack.enter_context((self._directory / f"{what}-{time.monotonic_ns()}.log").open("wb"))
        started = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "DASK_TEMPORARY_DIRECTORY": str(self._directory), **(env or {})},
            start_new_session=True,
        )
        self._stack.callback(ended, started)
        return started


def ended(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[Cluster, None, None]:
    with Cluster(tmp_path) as made:
        yield made


def running(*words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def line_with(process: "subprocess.Popen[str]", what: str) -> str:
    """Return the next line of stderr with these words; fail if there is none."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        if what in line:
            return line
        seen.append(line)
    raise AssertionError(f"no line with {what!r}: {''.join(seen)}")


def test_local_workers_try_the_plans_that_one_process_tries(tmp_path: Path) -> None:
    alone, divided = tmp_path / "alone.db", tmp_path / "divided.db"
    result = tmp_path / "result.json"
    assert command(*FEW, "--store", alone).returncode == 0
    done = command(*FEW, "--store", divided, "--cluster", "local:2", "-o", result)
    assert done.returncode == 0, done.stderr
    assert plans(divided) == plans(alone) != []
    assert json.loads(result.read_text())["trials"] == len(plans(alone))
    assert {path.name for path in tmp_path.iterdir()} <= {
        "alone.db",
        "alone.db-lock",
        "divided.db",
        "divided.db-lock",
        "result.json",
    }


@pytest.mark.slow  # starts eight interpreters
def test_more_workers_than_plans_is_the_same_sweep(tmp_path: Path) -> None:
    done = command(*FEW, "--store", tmp_path / "a.db", "--cluster", "local:7")
    assert done.returncode == 0, done.stderr
    assert command(*FEW, "--store", tmp_path / "b.db").returncode == 0
    assert plans(tmp_path / "a.db") == plans(tmp_path / "b.db")


def test_an_empty_shard_alone_is_unknown(tmp_path: Path) -> None:
    assert command(*FEW, "--store", tmp_path / "all.db").returncode == 0
    taken = {crc32(plan.encode()) % 40 for plan in plans(tmp_path / "all.db")}
    empty = next(number for number in range(40) if number not in taken)
    done = command(*FEW, "--shard", f"{empty + 1}/40")
    assert done.returncode == 3
    assert f"none of the plans is in shard {empty + 1}/40" in done.stderr


def test_the_shard_of_a_worker_that_is_killed_is_run_again(tmp_path: Path, cluster: Cluster) -> None:
    workers = {name: cluster.worker(name) for name in ("one", "two")}
    cluster.wait_for(2)
    store = tmp_path / "store.db"
    with running(*MANY, "--store", store, "--cluster", cluster.address) as sweep:
        line_with(sweep, "begins on")
        line_with(sweep, "begins on")
        wait_until("an arena", lambda: bool(Offspring(workers["one"].pid).arenas))
        made = Offspring(workers["one"].pid)
        ended(workers["one"])
        line_with(sweep, "begins again: its worker has gone")
        assert sweep.stderr is not None
        rest = sweep.stderr.read()
        assert sweep.wait(120) == 0, rest
    assert command(*MANY, "--store", tmp_path / "alone.db").returncode == 0
    assert plans(store) == plans(tmp_path / "alone.db")
    with Store(store, read_only=True) as opened:
        assert [run.state for run in opened.runs()] == ["ended"] * 3
    made.wait_until_gone()


def test_an_interrupted_sweep_goes_on_with_the_shards_that_had_ended(tmp_path: Path, cluster: Cluster) -> None:
    cluster.worker("one")
    stuck = cluster.worker("two")
    cluster.wait_for(2)
    store = tmp_path / "store.db"
    with running(*MANY, "--store", store, "--cluster", cluster.address) as sweep:
        line_with(sweep, "begins on")
        line_with(sweep, "begins on")
        stuck.send_signal(signal.SIGSTOP)
        line_with(sweep, "has ended, 1 of 2")
        sweep.send_signal(signal.SIGINT)
        assert sweep.stderr is not None
        rest = sweep.stderr.read()
        assert sweep.wait(60) == 130
    assert "go on by --resume" in rest
    stuck.send_signal(signal.SIGCONT)
    done = command(*MANY, "--store", store, "--cluster", cluster.address, "--resume")
    assert done.returncode == 0, done.stderr
    assert "goes on: 1 of 2 shards had ended" in done.stderr
    assert command(*MANY, "--store", tmp_path / "alone.db").returncode == 0
    assert plans(store) == plans(tmp_path / "alone.db")


def test_a_killed_coordinator_leaves_no_worker_and_no_arena_behind(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    with running(*MANY, "--store", store, "--cluster", "local:2") as sweep:
        line_with(sweep, "begins on")
        line_with(sweep, "begins on")
        wait_until("an arena", lambda: bool(Offspring(sweep.pid).arenas))
        made = Offspring(sweep.pid)
        sweep.kill()
    made.wait_until_gone()
    done = command(*MANY, "--store", store, "--cluster", "local:2", "--resume")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "store.db-shards").exists()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An adapter of a program that each worker finds on its own path."""
    for name in ("here", "there"):
        program = tmp_path / name / "mysandbox"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n# {name}\nexec "$@"\n')
        program.chmod(0o755)
    adapter = tmp_path / "own.toml"
    adapter.write_text(
        """name = "own"
summary = "runs it as it is"
version = ["{exe:mysandbox}", "/bin/echo", "1"]
launch = ["{exe:mysandbox}", "{program}"]
needs = { binaries = ["mysandbox"], install = "it is in the test" }
probe = { none = "it isolates nothing" }
"""
    )
    return adapter


def test_workers_that_test_different_programs_are_refused(tmp_path: Path, cluster: Cluster, own: Path) -> None:
    for name in ("here", "there"):
        cluster.worker(f"worker-{name}", [("PATH", f"{tmp_path / name}:{os.environ['PATH']}")])
    env = {**os.environ, "PATH": f"{tmp_path / 'here'}:{os.environ['PATH']}"}
    cluster.wait_for(2)
    words = ("crash", "--target", own, "--store", tmp_path / "store.db", "--cluster", cluster.address)
    done = command(*words, env=env)
    assert done.returncode == 2
    assert "contents is" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("crash", "--cluster", "local:2"), "--store FILE"),
        (("crash", "--cluster", "local:2", "--shard", "1/2"), "give one of the two"),
        (("crash", "--cluster", "local:2", "--iterations", "5"), "give one of the two"),
        (("crash", "--cluster", "local:0"), "give 1 to"),
        (("crash", "--cluster", "nonsense"), "give local:N, or tcp://HOST:PORT"),
        (("crash", "--cluster", "http://127.0.0.1:1"), "give local:N, or tcp://HOST:PORT"),
        (("leaks", "--cluster", "local:2"), "No such option"),
    ],
)
def test_what_cannot_be_run_on_a_cluster_is_one_clear_line(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    store = () if "--store FILE" in says else ("--store", tmp_path / "store.db")
    done = command(*words, "--target", "refbox", *store)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_cluster_that_nobody_answers_for_is_exit_2(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    began = time.monotonic()
    done = command(*FEW, "--store", tmp_path / "store.db", "--cluster", address)
    assert done.returncode == 2
    assert address in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 60


def test_without_dask_the_message_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed/__init__.py").write_text("raise ModuleNotFoundError(name='distributed')\n")
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = command(*FEW, "--store", tmp_path / "store.db", "--cluster", "local:2", env=env)
    assert done.returncode == 2
    assert "pip install 'sandbox-leakcheck[cluster]'" in done.stderr
