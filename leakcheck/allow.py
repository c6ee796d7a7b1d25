"""Allow rules: residue that is allowed to stay, each rule with its reason. The native core parses and matches them."""

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from leakcheck._native import check_allow, read_input
from leakcheck.errors import UsageError


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One rule: residue of `kind` whose details match every glob of `match` is allowed until `expires`.

    Args:
        kind: a kind such as ``"file"``; one of `leakcheck.KINDS`.
        match: detail of the resource's record → glob, such as ``{"path": "/tmp/build-*"}``; empty matches the whole
            kind.
        reason: why it may stay; required, because the report shows it.
        expires: last day on which the rule holds; afterwards the rule itself is an error.
    """

    kind: str
    match: Mapping[str, str] = field(default_factory=dict)
    reason: str = field(kw_only=True)
    expires: datetime.date | None = field(default=None, kw_only=True)

    def to_toml(self) -> str:
        """Return the rule as one ``[[allow]]`` table of an allow file (TOML 1.0)."""
        lines = ["[[allow]]", f"kind = {_quoted(self.kind)}", f"reason = {_quoted(self.reason)}"]
        if self.match:
            pairs = ", ".join(f"{_quoted(name)} = {_quoted(glob)}" for name, glob in self.match.items())
            lines.append(f"match = {{ {pairs} }}")
        if self.expires is not None:
            lines.append(f"expires = {self.expires.isoformat()}")
        return "\n".join(lines) + "\n"


Allow: TypeAlias = str | os.PathLike[str] | AllowRule | Iterable[AllowRule] | None
"""What the library accepts as allow rules: the path of an allow file, one rule, or several."""


def to_toml(allow: Allow) -> str | None:
    """Return `allow` as the checked text of an allow file.

    Raises:
        UsageError: the file cannot be read, or a rule has a wrong key, an unknown kind, no reason, or has expired.
    """
    if allow is None:
        return None
    if isinstance(allow, (str, os.PathLike)):
        return read_allow_file(allow)
    rules = [allow] if isinstance(allow, AllowRule) else list(allow)
    text = "\n".join(rule.to_toml() for rule in rules)
    check_allow(text, "allow rules")
    return text


def read_allow_file(path: str | os.PathLike[str]) -> str:
    """Return the checked text of the allow file at `path`; raise `UsageError` as `to_toml` does."""
    text = read_input("allow file", os.fspath(path), most=1 << 20)
    check_allow(text, os.fspath(path))
    return text


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, except for DEL and lone surrogates (TOML 1.0, "String").
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = "not valid Unicode; write such bytes as the report shows them, \\xNN"
        raise UsageError(f"allow rule {text!r}: {why}") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
