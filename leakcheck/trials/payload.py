"""The payload of a run: what it printed, and whether it runs."""

import contextlib
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from injectors import Checked, Room
from leakcheck.errors import TargetError, reason
from leakcheck.submissions import Submission
from leakcheck.trials.host import Host, Running
from leakcheck.trials.output import text
from leakcheck.trials.rootfs import find, opened

if TYPE_CHECKING:
    from leakcheck.trials.session import Session

_PAYLOAD = ["sleep", "613"]
SLEEPING = Submission(
    name="sleeping",
    program=("/bin/sh", "-c", f"echo started; {' '.join(_PAYLOAD)} || exit 1"),
    wall=60,
    expect="TLE",
)
"""Outlives any kill, and can only end by its wall limit. If only the sleep is killed, the status must not be OK."""


def install(host: Host, submission: Submission) -> None:
    """Write the program of a submission that has a script, unless it is there: something may still execute it."""
    if not submission.script:
        return
    path, content = Path(submission.program[0]), submission.script.encode()
    try:
        with contextlib.suppress(FileNotFoundError):
            if host.read(path) == content:
                return
        host.write(path, content, executable=True)
    except OSError as error:
        raise TargetError(f"write {path}: {reason(error)}") from error


def printed(session: "Session", output: int) -> str:
    """Return what the payload printed so far, at most 64 KiB; `output` is the launch's."""
    path = session.target.output_file(session.box)
    if path is None:
        return text(output)
    try:
        return session.host.read(path)[: 1 << 16].decode(errors="replace")
    except OSError:
        return ""


def payload_runs(session: "Session", supervisor: Running, output: int) -> bool:
    """Return whether the payload of `SLEEPING` runs: it has printed, or its process is there, whatever it prints.

    A launcher has the payload's words among its own arguments; no process but the payload's has only these.
    """
    if "started" in printed(session, output):
        return True
    for process in session.host.tree(supervisor):
        with contextlib.suppress(psutil.Error):
            if process.cmdline() == _PAYLOAD:
                return True
    return False


def state_files(session: "Session", declared: str) -> list[str]:
    """Return the paths that exist of a state file, as the adapter names it."""
    return [str(path) for path in find(session.host.root, session.target.filled(declared, session.box))]


COUNTING = Submission(
    name="counting",
    program=("/bin/sh", "-c", "i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done; echo counted to $i"),
)
"""Prints a line at its end, so that a run that says OK can be believed."""
COUNTED = "counted to 1000"


def lacking(session: "Session", injector: Checked, submission: Submission, output: int) -> str:
    """Return what a run under a fault lacks that is to be OK; empty if nothing is known. `output` is the launch's."""
    # So far, the payload did not run, or it was killed while it did.
    early = session.fired("launch") in (("setup", "execution") if injector.kills_payload else ("setup",))
    if early and not _ended_well(session, injector):
        return "was not seen to run to its end"
    if submission.name == COUNTING.name and (times := printed(session, output).count(COUNTED)) != 1:
        return f"printed all {times} times" if times else "did not print all"
    return ""


def shared_namespace(session: "Session", namespaces: Mapping[str, str]) -> str:
    """Return which namespace a payload had in common with the outside that the adapter says it has not; empty if none.

    `namespaces` are the payload's, by type.
    """
    for kind in session.target.adapter.probe.namespaces:
        for pid in session.host.room().own():
            with contextlib.suppress(OSError):
                if str(Path(f"/proc/{pid}/ns/{kind}").readlink()) == namespaces.get(kind):
                    return f"was not isolated: its {kind} namespace was that of the outside"
    return ""


def _ended_well(session: "Session", injector: Checked) -> bool:
    """Return whether the payload was executed after a fault all the same, and ended well, as a tracer has seen."""
    lines = session.reports().get("launch", [])
    after = lines[next((at for at, line in enumerate(lines) if "fired" in line), len(lines)) :]
    payload = next((line["payload"] for line in after if "payload" in line), None)
    ends = [line["status"] for line in after if "ended" in line and line["ended"] == payload]
    return ends[-1:] == [0] and not injector.kills_payload


class DamagedFiles:
    """The files of a session's host, as injectors see them."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def directory(self, path: str) -> AbstractContextManager[int]:
        """Yield a descriptor of the directory that commands see at `path`."""
        return opened(self._session.host.root, Path(path), os.O_PATH | os.O_DIRECTORY)


class ObservedRun(DamagedFiles):
    """A run, as injectors see it."""

    def __init__(self, session: "Session", supervisor: Running, output: int) -> None:
        super().__init__(session)
        self.supervisor = supervisor
        self._output, self._began = output, time.monotonic()

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its start."""
        return (time.monotonic() - self._began) * 1000

    def tree(self) -> set[psutil.Process]:
        """Return the supervisor and everything that it started."""
        return self._session.host.tree(self.supervisor)

    def payload_runs(self) -> bool:
        """Return whether the sleeping payload runs."""
        return payload_runs(self._session, self.supervisor, self._output)

    @property
    def room(self) -> Room:
        """Its arena."""
        return self._session.host.room()

    def held(self, instant: str) -> int:
        """Return the process that the tracer holds, or has held, at an `instant`; 0 if there is none."""
        return self._session.held(instant)

    def release(self) -> None:
        """Let what the tracer holds go on."""
        self._session.release()

    def fired(self) -> bool:
        """Return whether the tracer of the run reported that the fault happened."""
        return bool(self._session.fired("launch"))

    def reports(self) -> list[dict[str, Any]]:
        """Return what the tracer reported of the launch."""
        return self._session.reports().get("launch", [])

    def state_files(self, declared: str) -> list[str]:
        """Return the paths that exist of what the adapter's ``state_files`` calls `declared`."""
        return state_files(self._session, declared)
