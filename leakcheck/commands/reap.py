"""``leakcheck reap``: remove what a saved report attributes to its run."""

import json
from pathlib import Path

import msgspec
from rich.console import Console

from leakcheck import _native
from leakcheck.campaigns.result import SCHEMA as CAMPAIGN
from leakcheck.deliver import print_json
from leakcheck.errors import UsageError
from leakcheck.render import line

_STYLE = {"would": "yellow", "done": "green", "gone": "dim", "skipped": "dim", "failed": "bold red"}


def reap(file: Path, *, apply: bool, as_json: bool) -> int:
    """Remove the leaks, or without `apply` only list them; return 1 if something could not be removed, else 0."""
    report = _native.read_input("report", file, own=True)
    text = _native.reap(_of_campaign(report, file), str(file), apply=apply)
    actions: list[dict[str, str]] = json.loads(text)
    if as_json:
        print_json(text)
    else:
        _print(actions, Console(), apply=apply)
    return 1 if any(action["status"] == "failed" for action in actions) else 0


class _Campaign(msgspec.Struct):
    schema: str = ""
    report: msgspec.Raw = msgspec.Raw(b"null")


def _of_campaign(text: str, file: Path) -> str:
    """Return the report inside a campaign's result; `text` itself if it is not one."""
    try:
        campaign = msgspec.json.decode(text, type=_Campaign)
    except (msgspec.MsgspecError, RecursionError):
        return text
    if campaign.schema != CAMPAIGN:
        return text
    if bytes(campaign.report) == b"null":
        raise UsageError(f"reap {file}: this campaign ran in arenas and left nothing on the host")
    return bytes(campaign.report).decode()


def _print(actions: list[dict[str, str]], console: Console, *, apply: bool) -> None:
    for action in actions:
        status = (f"{action['status']:<8} ", _STYLE.get(action["status"], ""))
        what = f"{action['action']} " if action["action"] != "none" else ""
        why = f" · {action['why']}" if action.get("why") else ""
        console.print(line(status, f"{what}{action['kind']}: {action['label']}", (why, "dim")), soft_wrap=True)
    waiting = sum(action["status"] == "would" for action in actions)
    if not actions:
        console.print("nothing to remove: the report lists no leak", soft_wrap=True)
    elif not apply and waiting:
        console.print(f"dry run: add --yes to remove {waiting} of {len(actions)}", soft_wrap=True)
