"""Signals to `leakcheck guard`: what reaches the command, what is reported, and what stays of leakcheck itself."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

import leakcheck
from leakcheck import _native
from leakcheck.commands.guard import GuardOptions, guarded
from leakcheck.errors import GivenUp

# Says that it runs and waits: exits 5 when it has read a line, or with the given code when a signal came. A shell will
# not do: dash loses a signal that comes after it has opened a file to read from and before it sleeps in read(2).
COMMAND = """
import os, select, signal, sys
wake, woken = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(woken)
for number, code in zip(sys.argv[1::2], sys.argv[2::2]):
    signal.signal(int(number), signal.SIG_IGN if code == "ignored" else lambda *_, code=code: os._exit(int(code)))
with open("begun", "w") as begun:
    begun.write("begun")
end = os.open("end", os.O_RDONLY)
while end not in select.select([wake, end], [], [])[0]:
    os.read(wake, 1)
os._exit(5)
"""


class Guarded:
    """A `leakcheck guard` on a terminal of its own; its command says when it runs and waits to be told to end."""

    def __init__(self, directory: Path, on_signal: dict[signal.Signals, int | str] | None = None) -> None:
        self.directory = directory
        # Opening a FIFO blocks until the other side is there. The one that ends the command has both sides here
        # already, so that no command can miss its end.
        os.mkfifo(directory / "begun")
        os.mkfifo(directory / "end")
        self.end = os.open(directory / "end", os.O_RDWR)
        # What the command is told: numbers of signals, each with the code to exit with.
        deeds = [str(word) for pair in (on_signal or {}).items() for word in (int(pair[0]), pair[1])]
        self.terminal, slave = os.openpty()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "leakcheck", "guard", "--kinds", "process", "--settle", "0.05"),
                *("-o", "out/report.json", "--", sys.executable, "-ISc", COMMAND, *deeds),
            ],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(directory / "out")},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: os.login_tty(slave),
        )
        os.close(slave)
        self.pidfd = os.pidfd_open(self.process.pid)
        (directory / "begun").read_text()

    def ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, seconds: float = 60) -> int | None:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return self.process.wait() if poll.poll(seconds * 1000) else None

    def end_command(self) -> None:
        """Let the command end, if it still runs."""
        os.write(self.end, b"\n")

    def report(self) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((self.directory / "out" / "report.json").read_text())
        return loaded

    def close(self) -> None:
        self.end_command()
        if self.ended(0) is None:
            self.send(signal.SIGKILL)
            self.process.wait()
        for descriptor in (self.pidfd, self.terminal, self.end):
            os.close(descriptor)


@pytest.fixture
def place(tmp_path: Path) -> Generator[Path, None, None]:
    """Yield a directory; a process, mount, cgroup or file of the test that is left in the end fails it."""
    (tmp_path / "out").mkdir()
    allow = [
        leakcheck.AllowRule("file", {"path": f"{tmp_path}/out/report.json"}, reason="it was asked for"),
        leakcheck.AllowRule(
            "process", {"state": "Z"}, reason="an orphan's zombie is reaped by init, and some do on a timer"
        ),
    ]
    kinds = "process,mount,cgroup,namespace,file"
    with leakcheck.guard(kinds=kinds, roots=[tmp_path], allow=allow, on_unknown="ignore", attributed_only=True):
        yield tmp_path
        for name in ("begun", "end"):
            (tmp_path / name).unlink()


def test_ctrl_c_reaches_the_command_whose_end_is_waited_for_and_reported(place: Path) -> None:
    guarded = Guarded(place, {signal.SIGINT: 7})
    try:
        guarded.ctrl_c()
        assert guarded.ended() == 130
        assert guarded.report()["command"]["exit"] == 7  # type: ignore[index]
        assert guarded.report()["verdict"] == "clean"
    finally:
        guarded.close()


def test_a_second_ctrl_c_gives_up_waiting(place: Path) -> None:
    guarded = Guarded(place, {signal.SIGINT: "ignored"})
    try:
        # The terminal may merge signals that come before the first is taken.
        for _ in range(200):
            guarded.ctrl_c()
            if (code := guarded.ended(0.1)) is not None:
                break
        assert code == 130
        assert not list((place / "out").iterdir())
    finally:
        guarded.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_passed_on_and_the_outcome_is_reported(place: Path, number: signal.Signals) -> None:
    guarded = Guarded(place, {number: 9})
    try:
        guarded.send(number)
        assert guarded.ended() == 130
        assert guarded.report()["command"]["exit"] == 9  # type: ignore[index]
    finally:
        guarded.close()


def test_sigterm_kills_a_command_that_does_not_trap_it(place: Path) -> None:
    guarded = Guarded(place)
    try:
        guarded.send(signal.SIGTERM)
        assert guarded.ended() == 130
        assert guarded.report()["command"]["exit"] == -signal.SIGTERM  # type: ignore[index]
    finally:
        guarded.close()


def test_a_hangup_that_was_ignored_from_the_start_stays_ignored(place: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        guarded = Guarded(place)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        guarded.send(signal.SIGHUP)
        guarded.end_command()
        assert guarded.ended() == 0
        assert guarded.report()["command"]["exit"] == 5  # type: ignore[index]
    finally:
        guarded.close()


def test_sigkill_while_the_command_runs_leaves_nothing_of_leakchecks(place: Path) -> None:
    guarded = Guarded(place)
    try:
        guarded.send(signal.SIGKILL)
        assert guarded.ended() == -signal.SIGKILL
        assert not list((place / "out").iterdir())
    finally:
        guarded.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_settling_leaves_nothing_of_leakchecks(place: Path, number: signal.Signals) -> None:
    os.mkfifo(place / "begun")
    os.mkfifo(place / "end")
    end = os.open(place / "end", os.O_RDWR)
    # The command leaves a process, so that settling goes on while it lives; it ends when it has read a line.
    script = "(echo >begun; read line <end) </dev/null >/dev/null 2>&1 &"
    command = [
        sys.executable,
        "-m",
        "leakcheck",
        "guard",
        "--kinds",
        "process",
        "--settle",
        "5",
        "--",
        "sh",
        "-c",
        script,
    ]
    process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pidfd = os.pidfd_open(process.pid)
    try:
        (place / "begun").read_text()
        signal.pidfd_send_signal(pidfd, number)
        os.write(end, b"\n")
        code = process.wait(timeout=60)
        assert code in ((-signal.SIGKILL,) if number == signal.SIGKILL else (130,))
    finally:
        os.close(pidfd)
        os.close(end)


def test_a_second_ctrl_c_while_settling_leaves_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    os.mkfifo(tmp_path / "end")
    end = os.open(tmp_path / "end", os.O_RDWR)
    # What settling waits for is the background process, which lives until it has read a line.
    script = "(trap '' INT; echo >begun; read line <end) </dev/null >/dev/null 2>&1 &"
    options = ("--kinds", "process", "--settle", "600")
    command = [sys.executable, "-m", "leakcheck", "guard", *options, "--", "sh", "-c", script]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pidfd = os.pidfd_open(process.pid)
    try:
        (tmp_path / "begun").read_text()
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        # A signal that comes before the one before it is taken is merged with it.
        for _ in range(300):
            signal.pidfd_send_signal(pidfd, signal.SIGINT)
            if ended.poll(100):
                break
        assert process.wait(timeout=1) == 130
    finally:
        os.write(end, b"\n")
        if process.poll() is None:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            process.wait()
        os.close(pidfd)
        os.close(end)


def test_a_baseline_that_takes_long_is_given_up_at_the_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def begin(**_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)

    monkeypatch.setattr(_native, "Guard", begin)
    with pytest.raises(GivenUp):
        guarded(lambda *_: pytest.fail("the command runs"), GuardOptions(observe={}))
    over.set()
