"""Submissions: a program, its limits and the verdict that it must get."""

from typing import Literal, TypeAlias

import msgspec

__all__ = ["BUILTIN", "Submission", "Verdict"]

Verdict: TypeAlias = Literal["OK", "TLE", "MLE", "RE", "OLE", "IE"]
"""What a target says of a submission; IE, internal error, is the target's own failure."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One program with the limits it runs under and the verdict it must get.

    Args:
        name: what reports call it.
        program: its argv inside the sandbox.
        wall: wall-clock limit in seconds; some targets take only whole ones.
        cpu: limit of processor time in seconds.
        memory: limit in bytes.
        processes: how many processes and threads at once.
        expect: the verdict.
        expect_exit: the exit code that the target must report, where it has one.
        expect_signal: the signal that the target must report, where it can.
    """

    name: str
    program: tuple[str, ...]
    wall: float = 10
    cpu: int = 10
    memory: int = 256 << 20
    processes: int = 64
    expect: Verdict = "OK"
    expect_exit: int | None = None
    expect_signal: int | None = None


def _shell(name: str, script: str, *, wall: float = 10, expect: Verdict, **more: int) -> Submission:
    return Submission(name=name, program=("/bin/sh", "-c", script), wall=wall, expect=expect, **more)


BUILTIN: dict[str, Submission] = {
    submission.name: submission
    for submission in (
        _shell("ok", "i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done; exit 0", expect="OK", expect_exit=0),
        # Ten minutes, so that a limit that does not work is never mistaken for one that does.
        _shell("timeout", "sleep 600; exit 0", wall=1, expect="TLE"),
        # 11 is SIGSEGV. Process 1 is spared its own signal (pid_namespaces(7)); then a child of the shell gets it.
        _shell("crash_signal", "kill -SEGV $$; sh -c 'kill -SEGV $$'; exit $?", expect="RE", expect_signal=11),
        _shell("crash_exit", "exit 3", expect="RE", expect_exit=3),
    )
}
