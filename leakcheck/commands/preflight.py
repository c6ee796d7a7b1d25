"""``leakcheck doctor --preflight``: whether this machine has what jobs need, with the steps that mend it."""

import msgspec
from rich.console import Console

from leakcheck.commands import CLEAN, LEAKED
from leakcheck.deliver import print_json
from leakcheck.preflight import Outcome, preflight
from leakcheck.render import count, line

_STYLE = {"pass": "green", "skip": "yellow", "fail": "red"}


def run_preflight(names: list[str], *, as_json: bool) -> int:
    """Run these checks and print each outcome as it comes; return 1 if one fails, 0 otherwise."""
    console = Console()
    found = []
    for outcome in preflight(names):
        found.append(outcome)
        if not as_json:
            _print(outcome, console)
    states = [one.state for one in found]
    if as_json:
        print_json(msgspec.json.encode({"schema": "leakcheck.preflight/1", "outcomes": found}).decode())
    else:
        counted = ", ".join(f"{states.count(state)} {state}" for state in _STYLE if state in states)
        console.print(line(f"{count(len(found), 'step')}: {counted}"), soft_wrap=True)
    return LEAKED if "fail" in states else CLEAN


def _print(outcome: Outcome, console: Console) -> None:
    state = outcome.state, _STYLE[outcome.state]
    console.print(line(state, f"  {outcome.check}, {outcome.step}: {outcome.found}"), soft_wrap=True)
    for step in outcome.fix:
        console.print(line("      fix: ", (step, "cyan")), soft_wrap=True)
