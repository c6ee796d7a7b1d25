"""``leakcheck check``: does an adapter match its real sandbox?"""

import msgspec
from rich.console import Console

from leakcheck.commands import CLEAN, INTERRUPTED, LEAKED
from leakcheck.conformance import check as checked
from leakcheck.deliver import notify, print_json
from leakcheck.render import line
from leakcheck.targets import Target


def check(target: Target, *, as_json: bool) -> int:
    """Run every check of the target's adapter and print the results; 1 if one failed, 130 if interrupted."""
    target.check_ready()
    try:
        findings = checked(target)
    except KeyboardInterrupt:
        notify("interrupted: no result")
        return INTERRUPTED
    if as_json:
        about = {"schema": "leakcheck.check/1", "target": target.name, "version": target.version()}
        print_json(msgspec.json.encode({**about, "findings": findings}).decode())
    else:
        console = Console()
        shown: dict[str, str] = {}
        for one in findings:
            passed = ("ok   ", "green") if one.passed else ("FAIL ", "bold red")
            # A sandbox that cannot start fails each check with the same words.
            first = shown.setdefault(one.detail, one.check)
            detail = one.detail if first == one.check or not one.detail else f"as {first}"
            console.print(line(passed, f"{one.check:<13} {one.seconds:6.2f} s  {detail}".rstrip()), soft_wrap=True)
    return CLEAN if all(finding.passed for finding in findings) else LEAKED
