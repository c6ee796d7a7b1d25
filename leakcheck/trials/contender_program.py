"""What those who contend for a box run in it: a program of its own each, which is known by its name."""

import os
from pathlib import Path

from leakcheck.submissions import Submission
from leakcheck.trials.arena_host import ArenaHost

__all__ = ["HOLDER", "PROGRAMS", "contender", "processes"]

# Seconds: of a payload's wait if nobody ends it, and its limit.
_PAYLOAD_SECONDS = 60
_WALL = 30
# What needs no bundle has /usr/share inside all the same: no sandbox has to show another directory. In the arena of an
# ordinary user, only root writes there.
PROGRAMS = (Path("/usr/share") if os.geteuid() == 0 else ArenaHost.work.parent) / "leakcheck-contenders"
"""The directory of the payloads' programs in an arena."""


def _script(number: int) -> str:
    # It tells when it begins, waits, and tells when it ends.
    tells = [f"echo {word} {number} $(date +%s%N)" for word in ("begin", "end")]
    return f"#!/bin/sh\n{tells[0]}; {' '.join(_sleep(number))}; {tells[1]}; exit 0\n"


def _sleep(number: int) -> list[str]:
    return ["sleep", f"{_PAYLOAD_SECONDS}.{number:03}"]


def contender(number: int) -> Submission:
    """Return the submission of a contender: it ends when the witness ends its payload's wait."""
    program = str(PROGRAMS / str(number))
    return Submission(name=f"contender-{number}", program=(program,), script=_script(number), wall=_WALL)


HOLDER = contender(0)
"""The first one."""


def processes(number: int) -> dict[tuple[str, ...], bool]:
    """Return the arguments of the processes of a contender's payload, and whether it is the one that waits."""
    return {("/bin/sh", *contender(number).program): False, tuple(_sleep(number)): True}
