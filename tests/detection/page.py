"""The page: docs/reference/detection.md. No times and no pids, so that the same machine writes the same page."""

import platform
import re
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from leakcheck import __version__

if TYPE_CHECKING:
    from table import Row

TOOLS = ("leakcheck", "psutil", "lsof", "findmnt+find")

INTRO = """\
# What is detected

`mkleak` plants exactly one leak at a time; each row is one of its plants. Every tool looks before the leak is made and while it is
there, and compares its two looks. The leak is made in a program that runs at both looks, as a sandbox's supervisor does: what
leaks inside a process that was there before is harder to see than a process that is left over.

The columns:

- **leakcheck**: `snapshot`, `snapshot`, `diff`, with every kind. *yes* means that the report has a leak for every resource that
  the plant consists of, of the right kind and with the identity that the plant itself has told: pid, number, device and inode,
  id, range, name. Then the plant is taken away, and the same baseline has to be clean again; else the cell says *not clean*.
- **psutil**: a pytest fixture that compares the children of the test process and, of each of them, open files, connections and the
  number of descriptors ([psutil_fixture.py](../../tests/detection/peers/psutil_fixture.py)).
- **lsof**: the difference of two listings of `lsof -nPw` ([lsof_diff.sh](../../tests/detection/peers/lsof_diff.sh)).
- **findmnt+find**: the difference of two listings of `findmnt`, and of `find` in the directories and cgroups where the plants go
  ([findmnt_find.sh](../../tests/detection/peers/findmnt_find.sh)).

For these three *yes* is generous: any difference between the two listings counts, whether or not it says what was left. The
machine is quiet meanwhile: all of this runs in pid, mount, IPC, network and UTS namespaces of its own, with directories and
cgroups of its own. On a busy machine each of them differs at every look.

What no row shows and leakcheck does not see is listed in [undetected.md](../explanation/undetected.md).
"""


def render(rows: "Sequence[Row]") -> str:
    return "\n".join([INTRO, machine(), "", *table(rows), *skipped(rows), "", "Written by `make detection`.", ""])


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
    lines = [f"| plant | kind | {' | '.join(TOOLS)} |", f"|---|---|{':-:|' * len(TOOLS)}"]
    ran = [row for row in rows if not row.skipped]
    for row in ran:
        cells = [("yes" if row.found[tool] else "no") for tool in TOOLS]
        if row.found["leakcheck"] and not row.clean:
            cells[0] = "not clean"
        lines.append(f"| `{row.plant.name}`: {row.plant.what} | {row.plant.kind} | {' | '.join(cells)} |")
    sums = [sum(row.found[tool] for row in ran) for tool in TOOLS]
    return [*lines, f"| **found of {len(ran)}** | | {' | '.join(f'**{count}**' for count in sums)} |"]


def skipped(rows: "Sequence[Row]") -> list[str]:
    reasons = [f"- `{row.plant.name}`: {row.skipped}" for row in rows if row.skipped]
    return ["", "Cannot exist on this machine, hence skipped:", "", *reasons] if reasons else []
