"""What a guarded command does to its process group, its terminal and its container does no harm to leakcheck."""

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

from leakcheck.group import Group

GUARD = [sys.executable, "-m", "leakcheck", "guard", "--kinds", "process", "--settle", "0.05"]


def guard(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "start_new_session": True, **options}
    return subprocess.run([*GUARD, "--", *command], text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP", "KILL", "QUIT", "USR1"])
def test_kill_0_ends_the_commands_process_group_and_not_leakcheck(number: str) -> None:
    done = guard("sh", "-c", f"kill -{number} 0; sleep 60")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("leakcheck: clean after ")
    assert f"killed by signal {getattr(signal, 'SIG' + number).value}" in done.stderr


def test_the_command_leads_no_group_and_can_begin_a_session() -> None:
    done = guard(sys.executable, "-c", "import os; os.setsid(); print(os.getpgrp() == os.getpid())")
    assert (done.returncode, done.stdout) == (0, "True\n")


class Terminal:
    """A terminal with a shell that has job control, as a user has one."""

    def __init__(self, directory: Path) -> None:
        pid, self.fd = pty.fork()
        if pid == 0:
            os.chdir(directory)
            env = {**os.environ, "PS1": "ready> ", "HISTFILE": "", "TERM": "dumb"}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
        self.pid = pid
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, seconds: float = 30) -> str:
        """Read on until `pattern` is there; return what came up to it."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            left = deadline - time.monotonic()
            assert left > 0, (pattern, self.text)
            if select.select([self.fd], [], [], left)[0]:
                self.text += os.read(self.fd, 4096).decode("utf-8", "replace")
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def close(self) -> None:
        # The end of its terminal hangs up all of its jobs.
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Generator[Terminal, None, None]:
    shell = Terminal(tmp_path)
    settings = termios.tcgetattr(shell.fd)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(shell.fd, termios.TCSANOW, settings)
    shell.type("bind 'set enable-bracketed-paste off'; stty -echo; set -b; echo started\n")
    shell.expect("started\r?\n")
    yield shell
    shell.close()


LINE = shlex.join(GUARD)
# A shell forgets a SIGINT that comes while it starts or becomes another program; an interpreter does not.
SLEEPS = f'{shlex.quote(sys.executable)} -c "import time; print({{0}}, flush=True); time.sleep(60)"'


def test_a_command_in_the_foreground_reads_from_the_terminal(terminal: Terminal) -> None:
    # Not what the shell shows of the line itself.
    terminal.type(f"{LINE} -- sh -c 'echo $((1200 + 34)); read word; echo got $word'; echo code $?\n")
    terminal.expect("1234\r")
    terminal.type("something\n")
    terminal.expect("got something")
    terminal.expect("code 0")


def test_a_command_that_has_ended_is_not_asked_whether_it_stopped() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with Group() as group:
        group.joined(ended.pid)
        group.stopped(ended.pid)
    assert ended.wait() == 0


def test_ctrl_c_ends_the_command_and_the_verdict_follows(terminal: Terminal) -> None:
    terminal.type(f"{LINE} -- {SLEEPS.format('1111')}; echo code $?\n")
    terminal.expect("1111\r")
    terminal.type("\x03")
    terminal.expect("clean after")
    terminal.expect("code 130")


def test_ctrl_c_ends_a_command_that_has_the_terminal(terminal: Terminal) -> None:
    terminal.type(f"{LINE} -- {SLEEPS.format('2 * int(input())')}; echo code $?\n")
    terminal.type("1234\n")
    terminal.expect("2468\r")
    terminal.type("\x03")
    terminal.expect("clean after")
    terminal.expect("code 130")


@pytest.mark.parametrize("reads", ["", "read word;"])
def test_ctrl_z_stops_the_job_and_fg_goes_on_with_it(terminal: Terminal, reads: str) -> None:
    # One that is stopped between vfork(2) and exec keeps its parent from being stopped: so it tells that it runs.
    script = f"{reads} (echo runs; exec sleep 0.5); read word; echo got $word"
    terminal.type(f"{LINE} -- sh -c '{script}'; echo code $?\n")
    if reads:
        terminal.type("first\n")
    terminal.expect("runs")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("echo shell lives\n")
    terminal.expect("shell lives")
    terminal.type("fg\n")
    terminal.type("something\n")
    terminal.expect("got something")
    terminal.expect("clean after")


def test_a_job_in_the_background_stops_when_it_reads_and_fg_gives_it_the_terminal(terminal: Terminal) -> None:
    terminal.type(f"{LINE} -- sh -c 'read word; echo got $word' &\n")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.type("something\n")
    terminal.expect("got something")
    terminal.expect("clean after")


def test_a_pager_after_a_pipe_keeps_the_terminal(terminal: Terminal) -> None:
    terminal.type(f"{LINE} -- sh -c 'echo line; sleep 0.3' | (cat; read word </dev/tty; echo paged $word)\n")
    terminal.expect("clean after")
    terminal.type("something\n")
    terminal.expect("paged something")


# SIGHUP goes the same way and takes the same seconds.
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_sigterm_and_sighup_end_leakcheck_though_the_command_ignores_them(
    number: signal.Signals, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "begun")
    script = f"trap '' TERM HUP; echo >{tmp_path}/begun; while :; do sleep 1; done"
    process = subprocess.Popen([*GUARD, "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    (tmp_path / "begun").read_text()
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == 130
    assert process.stderr is not None
    assert b"killed by signal 9" in process.stderr.read()
    process.stderr.close()


@pytest.mark.slow
def test_signals_that_come_together_are_all_taken(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    for _ in range(30):
        script = f"trap 'exit 9' HUP; trap '' USR1; echo >{tmp_path}/begun; while :; do sleep 0.01; done"
        process = subprocess.Popen(
            [*GUARD, "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        (tmp_path / "begun").read_text()
        for number in (signal.SIGCHLD, signal.SIGQUIT, signal.SIGWINCH, signal.SIGHUP):
            process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 130


PID1 = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can begin a pid namespace without more")


@as_root
def test_the_case_of_pid_1_has_no_zombie(case: Callable[..., Any]) -> None:
    # Below a pid namespace nothing tells whose the sockets of other work are.
    lines = case("sh", "{pid1.sh}").text.splitlines()
    assert not [line for line in lines if "zombie" in line and "gone after" not in line]


@as_root
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("(sleep 0.01 </dev/null >/dev/null 2>&1 &); exit 0", 0),
        ("(sleep 60 </dev/null >/dev/null 2>&1 &); exit 0", 1),
        ("kill -9 $$", 0),
        ("for n in 1 2 3 4 5 6 7 8 9; do (true &); done; exit 3", 0),
    ],
)
@pytest.mark.parametrize("recover", [False, True])
def test_as_pid_1_what_ended_is_waited_for_and_what_lives_is_found(script: str, code: int, recover: bool) -> None:
    options = ["--recover", "(true &)"] if recover else []
    command = [*PID1, *GUARD, *options, "--", "sh", "-c", script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("leakcheck: leaked, 1 leak" if code else "leakcheck: clean")


@as_root
def test_as_pid_1_signals_reach_the_command() -> None:
    script = "trap 'exit 7' TERM; kill -TERM 1; while :; do sleep 0.05; done"
    command = [*PID1, *GUARD, "--", "sh", "-c", script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert "(exit 7)" in done.stderr
