"""Targets of which it is known by construction what they leave."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leakcheck.campaigns import Result
from leakcheck.campaigns.recording import Recording
from leakcheck.targets import Target, load

__all__ = ["LEAKCHECK", "WATCHES", "Calls", "cut_off", "failed", "target"]

LEAKCHECK = [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "leakcheck"]
"""The command. It ends with the thread that starts it: a killed suite leaves no campaign running (prctl(2))."""

# ptrace(PTRACE_TRACEME), and seccomp(2) with SECCOMP_FILTER_FLAG_NEW_LISTENER and a filter that allows all.
WATCHES = r"""python3 -c "import ctypes as c, struct; l = c.CDLL(None); l.ptrace(0, 0, 0, 0)
b = c.create_string_buffer(struct.pack(\"HBBI\", 6, 0, 0, 0x7fff0000))
l.syscall(317, 1, 8, struct.pack(\"HQ\", 1, c.addressof(b)))" """
"""A command of a script that uses ptrace and watches calls itself, so that it can be neither traced nor notified."""


class Calls(Recording):
    """Calls `called` with each trial that is to be recorded."""

    def __init__(self, called: Callable[[Any], None]) -> None:
        self._called = called

    def add(self, trial: Any, kept: Callable[[], bytes]) -> None:
        kept()
        self._called(trial)


class KilledError(Exception):
    """Ends a campaign as a kill does, of which nothing is recorded any more."""


def cut_off(recording: Recording, after: int) -> list[Any]:
    """Let `recording` record no more than `after` trials, as after a kill; return the list of all that are made."""
    keep, seen = recording.add, list[Any]()

    def add(trial: Any, kept: Callable[[], bytes]) -> None:
        seen.append(trial)
        if len(seen) > after:
            raise KilledError
        keep(trial, kept)

    recording.add = add  # type: ignore[method-assign]
    recording.end = lambda *_: None  # type: ignore[method-assign]
    return seen


def target(
    tmp_path: Path, script: str, *, recover: str = "", prepare: str = "", more: str = "", name: str = "made"
) -> Target:
    """Make a target of a shell script, which runs its arguments."""
    path = tmp_path / f"{name}.toml"
    lines = [
        f'name = "{name}"',
        'summary = "made by a test"',
        f"launch = ['/bin/sh', '-c', '''{script}''', 'sh',",
        "'/usr/bin/timeout', '{wall}', '{program}']",
        "status = { timeout = [124] }",
        'probe = { none = "isolates nothing" }',
        more,
    ]
    if recover:
        lines.insert(2, f"recover = [['/bin/sh', '-c', '''{recover}''']]")
    if prepare:
        lines.insert(2, f"prepare = [['/bin/sh', '-c', {json.dumps(prepare)}, 'sh', '{{work}}']]")
    path.write_text("\n".join(lines))
    return load(path)


def failed(campaign: Result) -> list[str]:
    """Return the criteria that were not met, the pace apart: it is the machine's."""
    return [name for name in campaign.failed if not name.startswith(("slowdown", "submissions a minute"))]
