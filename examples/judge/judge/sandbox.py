"""One submission in one box of refbox."""

import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judge.settings import Settings, UnusableError

LANGUAGES = {"sh": "main.sh", "c": "main.c", "cpp": "main.cpp", "java": "Main.java", "python": "main.py"}
_IN_USE = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """The boxes of one data directory. Each worker uses the box that has the number of its slot."""

    refbox: Path
    state: Path
    wall: float
    output: int

    def start(self, box: int, work: Path, spec: Mapping[str, Any], stdin: Path | None) -> "Run":
        """Start the submission; what it needs and makes is below `work`."""
        source = work / "source"
        source.mkdir(mode=0o755)
        path = source / LANGUAGES[spec["language"]]
        path.write_text(spec["source"])
        command = [self.refbox, "run", "--state", self.state, "--box", str(box), "--wait", "--result", work / "status"]
        command += ["--wall", str(self.wall), "--cpu", str(self.wall), "--output", str(self.output)]
        command += ["--file-size", str(self.output)]
        command += ["--stdout", work / "stdout", "--stderr", work / "stderr"]
        command += ["--stdin", stdin] if stdin is not None else []
        if spec["language"] == "sh":
            command += ["--bind", source, "--", "/bin/sh", path]
        else:
            command += ["--language", spec["language"], "--source", path]
        return Run(_spawn([str(part) for part in command], work / "messages"), work)

    def empty(self, box: int) -> bool:
        """Remove what a killed refbox left in this box; return False while a refbox still uses it.

        Raise `UnusableError` if the box cannot be emptied.
        """
        done = subprocess.run(
            [self.refbox, "recover", "--state", self.state, "--box", str(box)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode not in (0, _IN_USE):
            why = done.stderr.strip() or f"recover exits with {done.returncode}"
            raise UnusableError(f"refbox does not work here: {why}")
        return done.returncode == 0

    def check(self, box: int, work: Path) -> None:
        """Run `true`, or raise `UnusableError`: a judge that cannot isolate does not run anything.

        `work` belongs to whoever holds the slot's lock; a worker that was killed may have left it.
        """
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o755)
        try:
            run = self.start(box, work, {"language": "sh", "source": "true"}, None)
            run.process.wait()
            outcome = run.outcome()
            if outcome["status"] != "OK":
                raise UnusableError(f"refbox does not work here: {outcome['status']}: {outcome['reason']}")
        finally:
            shutil.rmtree(work)


def of(settings: Settings) -> Sandbox:
    """Return the sandbox; raise `UnusableError` if refbox is not installed."""
    found = os.environ.get("JUDGE_REFBOX") or shutil.which("refbox")
    if not found:
        try:
            from leakcheck._bin import helper

            found = str(helper("refbox"))
        except (ImportError, FileNotFoundError) as error:
            raise UnusableError(f"no refbox: install sandbox-leakcheck, or set JUDGE_REFBOX ({error})") from error
    return Sandbox(Path(found), settings.data / "refbox", settings.wall, settings.max_output)


class Run:
    """A started submission."""

    def __init__(self, process: "subprocess.Popen[bytes]", work: Path) -> None:
        self.process, self._work = process, work

    def stop(self) -> None:
        """End the submission: refbox removes everything of it when it is told to exit."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Our own child: nobody else reaps it, so its pid cannot be another's.
        if self.process.poll() is None:
            pidfd = os.pidfd_open(self.process.pid)
            try:
                signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def outcome(self) -> dict[str, Any]:
        """Return the status, the reason, and the first 64 KiB of each output, after the end."""
        try:
            told = json.loads((self._work / "status").read_bytes())
        except (OSError, ValueError):
            message = _start_of(self._work / "messages") or f"refbox exited with {self.process.returncode}"
            told = {"status": "IE", "reason": message.strip()}
        keys = (
            "status",
            "reason",
            "exit_code",
            "signal_name",
            "wall_ms",
            "cpu_ms",
            "memory_peak_bytes",
            "output_bytes",
        )
        outcome = {key: told.get(key) for key in keys}
        return outcome | {name: _start_of(self._work / name) for name in ("stdout", "stderr")}


def _start_of(path: Path, most: int = 64 << 10) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""


def _spawn(command: list[str], messages: Path) -> "subprocess.Popen[bytes]":
    parent = os.getpid()

    def with_parent() -> None:
        # A worker that is killed must not leave its submission behind: refbox gets SIGTERM, and empties its box.
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # killed before the line above
            os._exit(1)

    with messages.open("wb") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=with_parent, start_new_session=True
        )
