"""``leakcheck doctor``: what this user can and cannot observe on this machine, and how to get more."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from leakcheck import _native
from leakcheck.deliver import print_json
from leakcheck.render import coverage, line


def doctor(observe: Mapping[str, Any], *, as_json: bool) -> int:
    """Examine the machine and print the findings; always returns 0."""
    text = _native.doctor(**observe)
    if as_json:
        print_json(text)
    else:
        _print(json.loads(text), Console())
    return 0


def _print(found: dict[str, Any], console: Console) -> None:
    def show(*parts: str | tuple[str, str]) -> None:
        console.print(line(*parts), soft_wrap=True)

    user, container, guard = found["user"], found["container"], found["guard"]
    capabilities = len(user["capabilities"])
    show(f"kernel {found['kernel']}, uid {user['uid']} with {capabilities} capabilities, cgroups {found['cgroups']}")
    if not container["initial_pid_namespace"]:
        show(("in a container's pid namespace: processes outside it are not visible", "yellow"))
    if not container["initial_user_namespace"]:
        show(("in a user namespace: capabilities are limited to it", "yellow"))
    for hint in container["hints"]:
        show(("looks like a container: ", "yellow"), hint)
    for kind, one in found["kinds"].items():
        show(f"{kind:<10} ", *coverage(one["level"], one.get("reason"), one.get("fix")))
    for source in found["sources"]:
        if source["level"] != "full":
            show(f"source {source['name']} ", *coverage(source["level"], source.get("reason"), source.get("fix")))
    full = [source["name"] for source in found["sources"] if source["level"] == "full"]
    show(("full sources: ", "dim"), ", ".join(full))
    for refusal in found["unreadable"]:
        show(("unreadable ", "yellow"), f"process {refusal['pid']} ({refusal['comm']}): {refusal['what']}")
    because = f": {guard['because']}" if guard.get("because") else ""
    style = "green" if guard["verdict"] == "clean" else "yellow"
    show("the best verdict of a guard here is ", (guard["verdict"], style), because)
    if undetected := found.get("undetected"):
        show((f"what leakcheck cannot see anywhere: {undetected}", "dim"))
