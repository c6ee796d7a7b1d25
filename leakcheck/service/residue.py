"""What a service left: the oracle beneath its front door."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from leakcheck import _native
from leakcheck.allow import AllowRule, to_toml
from leakcheck.arena import Arena
from leakcheck.report import Leak, Report
from leakcheck.service.contract import DATA
from leakcheck.trials.host import KINDS

__all__ = ["Baseline", "descriptors"]

_KINDS = [kind for kind in KINDS.split(",") if kind != "fd"]
"""Descriptors of the service come and go with connections: they are judged by slope."""
_KINDS_OF_IDLE = [kind for kind in _KINDS if kind != "lock"]
"""So do its locks, of a database for one. None may be left once it has stopped."""
Argv = tuple[bytes, ...]


class Baseline:
    """What an arena holds at some instant, to compare with.

    Args:
        arena: the arena.
        keeps: patterns of what the service may keep below its directory.
        idle: whether the service is there, so that locks are its own.
    """

    def __init__(self, arena: Arena, keeps: Sequence[str], *, idle: bool) -> None:
        self._arena = arena
        self._allow = to_toml([*_rules(keeps)])
        kinds = ",".join(_KINDS_OF_IDLE if idle else _KINDS)
        self._snapshot = _native.snapshot(kinds=kinds, arena=arena.view)
        self._commands = Counter(_argv(pid) for pid in arena.pids())
        self._listening = Counter(
            one["name"] for one in self._snapshot.resources("net") if one.get("class") == "listener"
        )

    def left(self, settle: float) -> tuple[list[Leak], dict[str, str]]:
        """Settle for at most so many seconds; return what is new, and what could not be seen in full.

        A process or listener in the place of an equal one that has gone is no residue: services replace their workers.
        """
        text = _native.settle(
            self._snapshot,
            allow=self._allow,
            settle_ms=round(settle * 1000),
            attributed_only=True,
        )
        report = Report.from_json(text)
        return self._without_successors(report.leaks), {kind: gap.reason for kind, gap in report.gaps.items()}

    def _without_successors(self, leaks: Sequence[Leak]) -> list[Leak]:
        now = Counter(_argv(pid) for pid in self._arena.pids())
        new = Counter(_argv_of(leak) for leak in leaks if leak.kind == "process")
        gone = Counter({argv: count - (now[argv] - new[argv]) for argv, count in self._commands.items()})
        listening, rest = self._listening.copy(), []
        for leak in leaks:
            name = leak.evidence.get("resource", {}).get("name")
            if leak.kind == "process" and gone[_argv_of(leak)] > 0:
                gone[_argv_of(leak)] -= 1
            elif leak.class_ == "held" and self._is_of_service(leak):
                continue
            elif leak.kind == "net" and listening[name] > 0:
                listening[name] -= 1
            else:
                rest.append(leak)
        return rest

    def _is_of_service(self, leak: Leak) -> bool:
        """Return whether a process of the service has it mapped: judged by slope too, and new workers map their own."""
        holder = leak.evidence.get("resource", {}).get("mapped_by")
        inner = {_pid_inside(pid): pid for pid in self._arena.pids()}
        return isinstance(holder, list) and holder[0] in inner and self._commands[_argv(inner[holder[0]])] > 0


def _rules(keeps: Sequence[str]) -> Iterable[AllowRule]:
    places = {DATA} | {f"{DATA}/{one}" for one in keeps}
    # The directory of a pattern is kept too.
    places |= {str(above) for one in keeps for above in PurePosixPath(f"{DATA}/{one}").parents if DATA in str(above)}
    for place in sorted(places):
        yield AllowRule("file", {"path": place}, reason="the contract's data.keeps")


def _argv(pid: int) -> Argv:
    with contextlib.suppress(OSError):
        return tuple(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1])
    return ()


def _pid_inside(pid: int) -> int:
    """Return the pid of a process in its own namespace, the last of its NSpid (proc_pid_status(5)); 0 if it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(re.findall(r"^NSpid:.*?(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])
    return 0


def _argv_of(leak: Leak) -> Argv:
    args = leak.evidence.get("args")
    return tuple(os.fsencode(str(one)) for one in args) if isinstance(args, list) else ()


def descriptors(pids: Iterable[int]) -> int:
    """Return how many descriptors these processes have open, and deleted files mapped."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += sum(1 for _ in os.scandir(f"/proc/{pid}/fd"))
            count += len(
                {*re.findall(r"^(?:\S+ +){4}(\d+) .*\(deleted\)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)}
            )
    return count
