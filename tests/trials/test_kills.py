"""Whose SIGKILL ended a target's own command: the target's, or the kernel's."""

from typing import Any

import pytest

from leakcheck.trials.kills import kills_itself

COMMAND, INSIDE = "3", 7


def sent(call: str, role: str = COMMAND, class_: str = "SIGKILL") -> dict[str, Any]:
    return {"role": role, "operation": "kill", "class": class_, "number": 4, "call": call}


@pytest.mark.parametrize(
    ("lines", "itself"),
    [
        ([], False),
        ([sent("kill(9, SIGKILL)")], False),
        ([sent("kill(9, SIGKILL)", f"{COMMAND}.1")], False),
        ([sent("kill(7, SIGTERM)", class_="SIGTERM")], False),
        ([sent("kill(7, SIGKILL)")], True),
        ([sent("kill(9, SIGKILL)"), sent("kill(7, SIGKILL)")], True),
        # Perhaps number 7 of a pid namespace below.
        ([sent("kill(7, SIGKILL)", f"{COMMAND}.1")], None),
        ([sent("kill(0, SIGKILL)")], None),
        ([sent("kill(-1, SIGKILL)", f"{COMMAND}.1")], None),
        ([sent("kill(-7, SIGKILL)")], None),
        ([sent('kill(5<"anon_inode:[pidfd]">, SIGKILL)')], None),
        ([{"role": COMMAND, "operation": "kill", "class": "SIGKILL"}], None),
        ([sent("kill(-7, SIGKILL)"), {"returned": 4, "value": -3}], False),
        ([sent("kill(-7, SIGKILL)"), {"returned": 4, "value": 0}], None),
    ],
)
def test_a_sigkill_to_another_process_ends_not_the_command_and_one_to_a_group_perhaps(
    lines: list[dict[str, Any]], itself: bool | None
) -> None:
    assert kills_itself(lines, INSIDE) is itself
