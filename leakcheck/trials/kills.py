"""Whether a target may have killed its own command in a run, or the kernel did: both send SIGKILL."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["kills_itself"]

_SENT = re.compile(r"kill\((-?[0-9]+), SIGKILL\)")


def kills_itself(lines: Sequence[Mapping[str, Any]], inside: int) -> bool | None:
    """Return whether the target sent SIGKILL to its own command, process `inside` of the arena; None: perhaps.

    `lines` are what a tracer recorded of the run. Who sends it to a process of another number means another one: a
    process in a pid namespace below cannot name one above it (pid_namespaces(7)). A group, a pidfd and the same number
    in such a namespace tell nothing.
    """
    failed = {line["returned"] for line in lines if "returned" in line and line.get("value", 0) < 0}
    perhaps = False
    for line in lines:
        if line.get("operation") != "kill" or line["class"] != "SIGKILL" or line.get("number") in failed:
            continue
        sent = _SENT.fullmatch(line.get("call", ""))
        receiver = int(sent[1]) if sent else 0
        # The command itself is in the arena's namespace.
        if receiver == inside and "." not in line["role"]:
            return True
        perhaps |= receiver <= 0 or receiver == inside
    return None if perhaps else False
