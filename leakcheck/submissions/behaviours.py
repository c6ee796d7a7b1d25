"""The behaviours of the suites' programs, with the status that each gets by construction.

A suite (`sources/`) is one program per language; its first argument selects the behaviour. Each behaviour ends by
itself even if a limit does not work: within ten minutes, and before it holds more than 1 GiB. Processes that outlive
their program do so for half of the shortest sampled wall limit, because some sandboxes wait for them.
"""

from collections.abc import Collection
from typing import Literal

import msgspec

from leakcheck.submissions.limits import DEFAULT_LIMITS, Limits, Status

LONGEST = 600
"""Seconds after which an endless behaviour ends with exit code 0, a wrong status."""

_MIB = 1 << 20
_MOST_MEMORY = 1024 * _MIB
_MOST_WRITTEN = 256 * _MIB
_MOST_CHILDREN = 200
_MOST_FILES = 4096

_TIMED = msgspec.structs.replace(DEFAULT_LIMITS, wall=1.0)
_SMALL = msgspec.structs.replace(DEFAULT_LIMITS, memory=64 * _MIB)
_SHORT = msgspec.structs.replace(DEFAULT_LIMITS, output=_MIB, file_size=_MIB)


class Behaviour(msgspec.Struct, frozen=True):
    """One behaviour of a program.

    Args:
        name: its name in specs, and the suite's first argument.
        expect: the expected status.
        summary: what it does, for the reference.
        languages: the languages that have it.
        argument: the suite's second argument: a number, or four times a limit (`memory`, `output`,
            `file_size`, each up to a bound), or the number of processes (twice `processes`).
        limits: its default limits, unless the spec gives others.
        ends_by: for TLE, the time limits that can end it.
        hostile: whether it tries to leave something behind.
        expect_exit: the exit code, if it is the same in each language.
        expect_signal: the signal, likewise.
    """

    name: str
    expect: Status
    summary: str
    languages: tuple[str, ...]
    argument: int | Literal["memory", "output", "file_size", "processes"] = 0
    limits: Limits = DEFAULT_LIMITS
    ends_by: tuple[Literal["wall", "cpu"], ...] = ()
    hostile: bool = False
    expect_exit: int | None = None
    expect_signal: int | None = None

    def number(self, limits: Limits) -> int:
        """Return the suite's second argument under `limits`."""
        match self.argument:
            case "memory":
                return min(4 * limits.memory, _MOST_MEMORY)
            case "output":
                return min(4 * limits.output, _MOST_WRITTEN)
            case "file_size":
                return min(4 * limits.file_size, _MOST_WRITTEN)
            case "processes":
                return min(2 * limits.processes, _MOST_CHILDREN)
            case number:
                return number

    def fits(self, time_limits: Collection[str], without: Collection[str], *, hostile: bool) -> bool:
        """Return whether `without` and `hostile` allow it, and one of `time_limits` can end it if it needs one."""
        ends = not self.ends_by or not set(self.ends_by).isdisjoint(time_limits)
        return ends and self.name not in without and (hostile or not self.hostile)

    def impossible(self, limits: Limits) -> str:
        """Return why its status is impossible under `limits`, empty if it is possible."""
        if self.ends_by and min(getattr(limits, name) for name in self.ends_by) > LONGEST / 2:
            names = " or ".join(self.ends_by)
            return f"give a limit of {names} of at most {LONGEST // 2} s: it ends by itself after {LONGEST} s"
        for name, most in (("memory", _MOST_MEMORY), ("output", _MOST_WRITTEN), ("file_size", _MOST_WRITTEN)):
            if self.argument == name and self.expect != "OK" and getattr(limits, name) > most // 2:
                return f"give {name} of at most {most // 2} bytes: it stops at {most}"
        return ""


_ALL = ("python", "cpp", "c", "java", "rust", "go", "node")
_FORKING = ("python", "cpp", "c")
_NATIVE = ("cpp", "c", "rust", "python")

BEHAVIOURS: dict[str, Behaviour] = {
    one.name: one
    for one in (
        Behaviour("hello", "OK", "prints one line", _ALL, expect_exit=0),
        Behaviour("cpu", "OK", "computes for 30 ms", _ALL, 30, expect_exit=0),
        Behaviour("memory", "OK", "writes to 16 MiB of memory", _ALL, 16 * _MIB, expect_exit=0),
        Behaviour("output", "OK", "prints 64 KiB", _ALL, 64 << 10, expect_exit=0),
        Behaviour("spin", "TLE", "computes", _ALL, LONGEST, _TIMED, ("wall", "cpu")),
        Behaviour("sleep", "TLE", "sleeps", _ALL, LONGEST, _TIMED, ("wall",)),
        Behaviour("ignore_sigterm", "TLE", "sleeps, and goes on after SIGTERM", _ALL, LONGEST, _TIMED, ("wall",)),
        Behaviour("allocate", "MLE", "writes to four times the memory limit, 1 GiB at most", _ALL, "memory", _SMALL),
        Behaviour("exit", "RE", "ends with exit code 3", _ALL, 3, expect_exit=3),
        Behaviour("exception", "RE", "throws what nobody catches", ("python", "cpp", "java", "rust", "go", "node")),
        Behaviour("overflow", "RE", "recurses without end", ("java",)),
        Behaviour("segv", "RE", "writes to an address that is not there", _NATIVE, expect_signal=11),
        # As process 1 it dies of SIGSEGV, because SIGABRT is ignored there (pid_namespaces(7)).
        Behaviour("abort", "RE", "calls abort()", _NATIVE),
        Behaviour("flood", "OLE", "prints four times the output limit, 256 MiB at most", _ALL, "output", _SHORT),
        Behaviour("big_file", "OLE", "writes a file of four times the file-size limit", _FORKING, "file_size", _SHORT),
        Behaviour(
            "fork_bomb",
            "OK",
            "forks twice the process limit, 200 at most, until it fails; each child ends after 0.3 s",
            _FORKING,
            "processes",
            hostile=True,
        ),
        Behaviour("zombies", "OK", "leaves 16 children that nobody waited for", _FORKING, 16, hostile=True),
        Behaviour(
            "daemonise", "OK", "leaves a process in a session of its own, for 30 s", (*_FORKING, "java"), hostile=True
        ),
        Behaviour("temp_litter", "OK", "leaves 20 files in /tmp", _ALL, hostile=True),
        Behaviour("shm_litter", "OK", "leaves 20 files in /dev/shm and System V IPC", _FORKING, hostile=True),
        Behaviour("fd_hog", "OK", "opens 4096 files, or until it fails", _ALL, _MOST_FILES, hostile=True),
        Behaviour(
            "sockets",
            "OK",
            "leaves a process that listens on TCP and on an abstract name, for 30 s (java: listens as it ends)",
            (*_FORKING, "java"),
            hostile=True,
        ),
        Behaviour("mounts", "OK", "mounts a tmpfs below /tmp, here and in a new namespace", _FORKING, hostile=True),
    )
}
"""The behaviours by name."""
