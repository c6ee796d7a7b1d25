"""The page: docs/reference/detection.md. No times and no pids, so that the same machine writes the same page."""

import importlib.util
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from place import RIGHTS_OF

from leakcheck import __version__

if TYPE_CHECKING:
    from table import Row

TOOLS = ("leakcheck", "psutil", "lsof", "findmnt+find")

INTRO = Path(__file__).with_name("intro.md")


def render(rows: "Sequence[Row]") -> str:
    return "\n".join(
        [
            INTRO.read_text(),
            machine(),
            "",
            *table(rows),
            *skipped(rows),
            "",
            *sabotages(),
            "",
            "Written by `make detection`.",
            "",
        ]
    )


def sabotages() -> list[str]:
    """Return the section on what campaigns detect, which tests/refbox/sabotages.py has."""
    spec = importlib.util.spec_from_file_location("sabotages", Path(__file__).parents[1] / "refbox/sabotages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.section())


def summary(rows: "Sequence[Row]", tools: Sequence[str] = TOOLS) -> str:
    ran = [row for row in rows if not row.skipped]
    counts = [f"{tool} {sum(row.found[tool] for row in ran)}" for tool in tools]
    return f"of {len(ran)} plants: {', '.join(counts)}; {len(rows) - len(ran)} skipped"


def machine() -> str:
    tools = {
        "leakcheck": __version__,
        "psutil": psutil.__version__,
        "lsof": version("lsof", "-v"),
        "util-linux": version("findmnt", "--version"),
        "findutils": version("find", "--version"),
    }
    named = ", ".join(f"{tool} {number}" for tool, number in tools.items())
    return f"Linux {platform.release()} ({platform.machine()}), {named}."


def version(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    number = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return number[0] if number else "of unknown version"


def table(rows: "Sequence[Row]") -> list[str]:
    columns = ("leakcheck", "guard", *(f"as {rights}" for rights in RIGHTS_OF), *TOOLS[1:])
    lines = [f"| plant | kind | {' | '.join(columns)} |", f"|---|---|{':-:|' * len(columns)}"]
    ran = [row for row in rows if not row.skipped]
    for row in ran:
        cells = [("yes" if row.found[tool] else "no") for tool in TOOLS]
        if row.found["leakcheck"] and not row.clean:
            cells[0] = "not clean"
        cells[1:1] = [row.guard, *(row.limited[rights] for rights in RIGHTS_OF)]
        lines.append(f"| `{row.plant.name}`: {row.plant.what} | {row.plant.kind} | {' | '.join(cells)} |")
    sums = [f"**{sum(row.found[tool] for row in ran)}**" for tool in TOOLS]
    stay = [row.guard for row in ran if row.guard not in ("ends", "-")]
    made = [[row.limited[rights] for row in ran if row.limited[rights] != "-"] for rights in RIGHTS_OF]
    found = [f"**{sum(cell in ('yes', 'unnamed') for cell in cells)}** of {len(cells)}" for cells in made]
    sums[1:1] = [f"**{stay.count('yes')}** of {len(stay)}", *found]
    return [*lines, f"| **found, of {len(ran)}** | | {' | '.join(sums)} |"]


def skipped(rows: "Sequence[Row]") -> list[str]:
    reasons = [f"- {row.skipped}" for row in rows if row.skipped]
    return ["", "Cannot exist on this machine, hence skipped:", "", *reasons] if reasons else []
