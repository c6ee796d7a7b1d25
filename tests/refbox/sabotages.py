"""Each protection that refbox can lack, and what then fails in which campaign: the one list of them.

`tests/refbox/test_sabotage.py` tries each row, and docs/reference/detection.md has their table. To add a row: put
``removed("NAME")`` where refbox has the protection, add the row here, and write the table with
``python tests/refbox/sabotages.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs/reference/detection.md"
BEGIN = "## Without one of its protections"
FILE = "/run/refbox/box-{box}.json"
UNNOTED = "damages that the target's log does not tell of"
EARLY = "resources made before the state that names them was on the disk"
UNNAMED = "errors that do not name what was exhausted"
BLAMED = "statuses that blame a program that never ran"
CRASHED = "supervisors or helpers that crashed"
DISTRUSTED = "power cuts after which it does not trust its own state"


class Sabotage(NamedTuple):
    """A protection that is missing, with the fault `plan` that shows it; empty: a plan that changes nothing does.

    `fails` is a criterion of the campaign, or the outcome of a finding.
    """

    protection: str
    means: str
    campaign: str
    plan: str
    fails: str


def _state(protection: str, means: str, damage: str, fails: str) -> Sabotage:
    flag = ",sleeping" if damage else ""
    return Sabotage(protection, means, "state", f"state:{FILE}:{damage}{flag}" if damage else "", fails)


def _locks(protection: str, means: str, plan: str, fails: str) -> Sabotage:
    return Sabotage(protection, means, "locks", f"lock:{plan}", fails)


SABOTAGES: Sequence[Sabotage] = (
    _state("checksum", "each value is as it was written", "more=/state/intent/supervisor/pid", UNNOTED),
    _state("frame", "each byte is as it was written", "unknown=", UNNOTED),
    _state("owner", "a state file is its own, with mode 600", "owner=65534", UNNOTED),
    _state("file-type", "a state file is a regular file, read without waiting", "directory", "wedged"),
    _state("missing", "cgroups without a state file are told of", "missing", UNNOTED),
    _state("audit", "a file that is set aside is told of", "garbage", UNNOTED),
    _state("set-aside", "a file that it does not trust makes room", "garbage", "wedged"),
    _state("one-kept", "one such file a box", "garbage", "silent"),
    _state("fsync", "a state is on the disk before its name", "", EARLY),
    _state("directory-fsync", "the name of a state is on the disk before what it names is made", "", EARLY),
    Sabotage("lack", "an error names what the machine lacks", "exhaust", "disk:full@0", UNNAMED),
    Sabotage("internal", "a failure of its own is IE", "exhaust", "pids:limit=0", BLAMED),
    Sabotage("result", "a result that cannot be written is an error", "exhaust", "disk:full@0,cleanup", UNNAMED),
    Sabotage("panic", "a process that cannot be started is an error", "exhaust", "pids:limit=0", CRASHED),
    _locks("flock", "the lock file is locked", "contend=4", "false-status"),
    _locks("unlink", "the lock file keeps its name, and a lock alone is not trusted", "late=4", "false-status"),
    _locks("recover-lock", "the recovery takes the lock", "recover-holder", "false-status"),
    _locks("pid-alone", "a supervisor is known by its start time, too", "reuse-pid", "wedged"),
    _locks("survivor", "what a dead supervisor left is ended", "kill-holder", "split-brain"),
    _locks("lock-type", "a lock file is a regular file", "/run/refbox/box-{box}.lock:directory,free", "wedged"),
)


def table() -> list[str]:
    """Return the lines of the table."""
    lines = ["| without | plan | the campaign | fails |", "|---|---|---|---|"]
    for one in SABOTAGES:
        plan = f"`{one.plan}`" if one.plan else "any"
        fails = f"*{one.fails}*" if " " not in one.fails else one.fails
        lines.append(f"| `{one.protection}`: {one.means} | {plan} | `{one.campaign}` | {fails} |")
    return lines


def section() -> list[str]:
    """Return the section of the page."""
    return [
        BEGIN,
        "",
        "What campaigns detect is measured with [refbox](refbox.md): a debug build, as `cargo build` makes",
        "it, lacks the protection that `$REFBOX_SABOTAGE` names. `tests/refbox/test_sabotage.py` tries each row; with",
        "all protections, the same plans pass.",
        "",
        *table(),
    ]


def main() -> None:
    """Write the section into the page."""
    written = "Written by `make detection`."
    before = PAGE.read_text().partition(f"{BEGIN}\n")[0].partition(written)[0]
    PAGE.write_text("\n".join([before.rstrip("\n"), "", *section(), "", f"{written}\n"]))


if __name__ == "__main__":
    main()
