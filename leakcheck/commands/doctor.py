"""``leakcheck doctor``: what this user can and cannot observe on this machine, and how to get more."""

from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console

from leakcheck import _native
from leakcheck.deliver import print_json
from leakcheck.render import coverage, line


class _Finding(msgspec.Struct, frozen=True):
    level: str
    reason: str = ""
    fix: str = ""
    name: str = ""


class _User(msgspec.Struct, frozen=True):
    uid: int
    capabilities: list[str]


class _Container(msgspec.Struct, frozen=True):
    initial_pid_namespace: bool
    initial_user_namespace: bool
    hints: list[str]


class _Refusal(msgspec.Struct, frozen=True):
    pid: int
    comm: str
    what: str


class _Answer(msgspec.Struct, frozen=True):
    verdict: str
    because: str = ""


class _Examination(msgspec.Struct, frozen=True):
    kernel: str
    user: _User
    cgroups: str
    container: _Container
    kinds: dict[str, _Finding]
    sources: list[_Finding]
    unreadable: list[_Refusal]
    guard: _Answer
    undetected: str = ""


def doctor(observe: Mapping[str, Any], *, as_json: bool) -> int:
    """Examine the machine and print the findings; always returns 0."""
    text = _native.doctor(**observe)
    if as_json:
        print_json(text)
    else:
        _print(msgspec.json.decode(text, type=_Examination), Console())
    return 0


def _print(found: _Examination, console: Console) -> None:
    def show(*parts: str | tuple[str, str]) -> None:
        console.print(line(*parts), soft_wrap=True)

    capabilities = len(found.user.capabilities)
    show(f"kernel {found.kernel}, uid {found.user.uid} with {capabilities} capabilities, cgroups {found.cgroups}")
    if not found.container.initial_pid_namespace:
        show(("in a container's pid namespace: processes outside it are not visible", "yellow"))
    if not found.container.initial_user_namespace:
        show(("in a user namespace: capabilities are limited to it", "yellow"))
    for hint in found.container.hints:
        show(("looks like a container: ", "yellow"), hint)
    for kind, finding in found.kinds.items():
        show(f"{kind:<10} ", *coverage(finding.level, finding.reason, finding.fix))
    for source in found.sources:
        if source.level != "full":
            show(f"source {source.name} ", *coverage(source.level, source.reason, source.fix))
    show(("full sources: ", "dim"), ", ".join(source.name for source in found.sources if source.level == "full"))
    for refusal in found.unreadable:
        show(("unreadable ", "yellow"), f"process {refusal.pid} ({refusal.comm}): {refusal.what}")
    style = "green" if found.guard.verdict == "clean" else "yellow"
    because = f": {found.guard.because}" if found.guard.because else ""
    show("the best verdict of a guard here is ", (found.guard.verdict, style), because)
    if found.undetected:
        show((f"what leakcheck cannot see anywhere: {found.undetected}", "dim"))
