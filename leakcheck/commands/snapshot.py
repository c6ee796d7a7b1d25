"""``leakcheck snapshot``: take one snapshot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from leakcheck import _native
from leakcheck.commands import CLEAN
from leakcheck.deliver import output_to, print_json
from leakcheck.render import print_snapshot


def snapshot(observe: Mapping[str, Any], output: Path | None, *, as_json: bool) -> int:
    """Take a snapshot; save it to a file, or print it as JSON or as a table."""
    with output_to(output) as place:
        taken = _native.snapshot(**observe)
        if place is not None:
            place.save(taken.to_json())
    if as_json:
        print_json(taken.to_json())
    elif output is None:
        print_snapshot(taken, Console())
    return CLEAN
