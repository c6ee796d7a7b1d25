"""Submissions: a program, its limits and the status that it must get."""

from leakcheck.submissions.limits import Limits, Status


class Submission(Limits, frozen=True, kw_only=True):
    """One program with its limits, and the status that it must get.

    Args:
        name: its name in reports; for a compiled one the spec that `parse_spec` parses back.
        program: its argv inside the sandbox.
        expect: the expected status.
        expect_exit: the exit code that the target must report, if any.
        expect_signal: the signal that the target must report, if it can.
        bundle: absolute path of the directory of the compiled program, which must exist read-only at the same path
            inside; empty if it needs none.
        script: what the first of `program` has to contain, if that file is to be written into the arena before the run.
    """

    name: str
    program: tuple[str, ...]
    wall: float = 10
    expect: Status = "OK"
    expect_exit: int | None = None
    expect_signal: int | None = None
    bundle: str = ""
    script: str = ""


def _shell(
    name: str, script: str, *, wall: float = 10, expect: Status, code: int | None = None, signal: int | None = None
) -> Submission:
    program = ("/bin/sh", "-c", script)
    return Submission(name=name, program=program, wall=wall, expect=expect, expect_exit=code, expect_signal=signal)


BUILTIN: dict[str, Submission] = {
    submission.name: submission
    for submission in (
        _shell("ok", "i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done; exit 0", expect="OK", code=0),
        # Ten minutes, so that a limit that does not work is never mistaken for one that does.
        _shell("timeout", "sleep 600; exit 0", wall=1, expect="TLE"),
        # 11 is SIGSEGV. Process 1 ignores its own signal (pid_namespaces(7)); then a child of the shell gets it.
        _shell("crash_signal", "kill -SEGV $$; sh -c 'kill -SEGV $$'; exit $?", expect="RE", signal=11),
        _shell("crash_exit", "exit 3", expect="RE", code=3),
    )
}
"""Commands for /bin/sh, which every sandbox can run; nothing is compiled."""
