"""``leakcheck diff``: compare two saved snapshots."""

import glob
from collections.abc import Sequence
from pathlib import Path

from leakcheck import _native
from leakcheck.allow import AllowRule, read_allow_file
from leakcheck.commands import EXIT_OF
from leakcheck.commands.guard import shows
from leakcheck.deliver import deliver, output_to
from leakcheck.report import Report


def diff(before: Path, after: Path, allow: Path | None, output: Path | None, *, as_json: bool) -> int:
    """Compare two saved snapshots; the exit code is the verdict's."""
    with output_to(output) as place:
        rules = "" if allow is None else read_allow_file(allow)
        first, second = _native.Snapshot.load(str(before)), _native.Snapshot.load(str(after))
        own = _own_rules([before, after], second)
        text = _native.diff(first, second, allow=rules + "\n" + "\n".join(rule.to_toml() for rule in own))
        report = Report.from_json(text)
        return deliver(EXIT_OF[report.verdict], text, place, None if as_json else shows(report))


def _own_rules(files: Sequence[Path], later: _native.Snapshot) -> list[AllowRule]:
    """Allow rules for the saved snapshot files, if they are in a root that the later snapshot observed."""
    seen = {resource.get("path") for resource in later.resources("file")} if "file" in later.kinds else set()
    absolute = [str(file.resolve()) for file in files]
    reason = "a saved snapshot that this comparison reads"
    return [AllowRule("file", {"path": glob.escape(path)}, reason=reason) for path in absolute if path in seen]
