"""``leakcheck diff``: compare two saved snapshots, or two results of a campaign or of `verify`."""

import glob
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from leakcheck import _native
from leakcheck.allow import AllowRule, read_allow_file
from leakcheck.commands import EXIT_OF
from leakcheck.commands.guard import shows
from leakcheck.deliver import deliver, output_to
from leakcheck.errors import UsageError
from leakcheck.render import print_lines
from leakcheck.report import Report


def diff(before: Path, after: Path, allow: Path | None, rules: str, output: Path | None, *, as_json: bool) -> int:
    """Compare two saved snapshots; the exit code is the verdict's. `rules` hold if `allow` names no file.

    Of two campaigns it is 1 if the later one is worse, 3 if it is not, but did not see or try what the earlier one did.
    """
    first_kind, second_kind = map(_kind, (before, after))
    if first_kind != second_kind:
        words = {"campaign": "a campaign's result", "verify": "a result of verify", "": "neither"}
        raise UsageError(
            f"{before} is {words[first_kind]}, {after} is {words[second_kind]}: "
            "give two results of campaigns, two of verify, or two snapshots"
        )
    if first_kind:
        if allow is not None:
            raise UsageError("--allow: its rules are for snapshots; these are results of campaigns")
        compare = _diff_campaigns if first_kind == "campaign" else _diff_verify
        return compare(before, after, output, as_json=as_json)
    with output_to(output) as place:
        rules = rules if allow is None else read_allow_file(allow)
        first, second = _native.Snapshot.load(str(before)), _native.Snapshot.load(str(after))
        own = _own_rules([before, after], second)
        text = _native.diff(first, second, allow=rules + "\n" + "\n".join(rule.to_toml() for rule in own))
        report = Report.from_json(text)
        return deliver(EXIT_OF[report.verdict], text, place, None if as_json else shows(report))


class _File(msgspec.Struct):
    schema: str = ""


def _kind(path: Path) -> str:
    """Return ``campaign`` or ``verify`` for JSON of these, of any version; what else it is, others find out."""
    try:
        # A pipe can be read only once, and only a snapshot is read from one.
        if not path.is_file():
            return ""
        text = _native.read_input("file", path)
        schema = msgspec.json.decode(text, type=_File).schema
    except (OSError, UsageError, msgspec.MsgspecError, RecursionError):
        return ""
    return next((kind for kind in ("campaign", "verify") if schema.startswith(f"leakcheck.{kind}/")), "")


def _diff_campaigns(before: Path, after: Path, output: Path | None, *, as_json: bool) -> int:
    # Imported here, since a diff of snapshots needs no campaigns.
    from leakcheck.campaigns.compare import Comparison, lines
    from leakcheck.campaigns.result import Result

    with output_to(output) as place:
        results = (Result.from_json(_native.read_input("campaign", path), str(path)) for path in (before, after))
        found = Comparison.of(*results)
        show = None if as_json else lambda: print_lines(lines(found), Console(stderr=True))
        return deliver(EXIT_OF[found.verdict], msgspec.json.encode(found).decode(), place, show)


def _diff_verify(before: Path, after: Path, output: Path | None, *, as_json: bool) -> int:
    from leakcheck.verify import Verifications
    from leakcheck.verify.compare import compared, lines

    with output_to(output) as place:
        texts = [_native.read_input("verify", path) for path in (before, after)]
        old, new = (Verifications.from_json(text, str(path)) for text, path in zip(texts, (before, after), strict=True))
        found = compared(old, new)
        show = None if as_json else lambda: print_lines(lines(found), Console(stderr=True))
        return deliver(EXIT_OF[found.verdict], msgspec.json.encode(found).decode(), place, show)


def _own_rules(files: Sequence[Path], later: _native.Snapshot) -> list[AllowRule]:
    """Allow rules for the saved snapshot files, if they are in a root that the later snapshot observed."""
    seen = {resource.get("path") for resource in later.resources("file")} if "file" in later.kinds else set()
    absolute = [str(file.resolve()) for file in files]
    reason = "a saved snapshot that this comparison reads"
    return [AllowRule("file", {"path": glob.escape(path)}, reason=reason) for path in absolute if path in seen]
