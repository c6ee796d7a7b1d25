"""Takes secrets out of what somebody is going to send to others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GONE = "[redacted]"
_NAMES = re.compile(
    r"(?i)(secret|token|passw|passphrase|[_-]pwd$|credential|api_?-?key|private_?-?key|access_?-?key|auth|cookie|session|dsn$|"
    r"(^|[_-])key$)"
)
"""Names of what holds a secret."""
_PATTERNS = [
    re.compile(text)
    for text in (
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)",
        r"(?<=://)[^\s/@]+(?=@)",  # user and password of a URL
        r"\b(gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|pypi-[\w-]{20,}|hf_\w{20,})",
        r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",  # a JSON Web Token
        r"(?i)(?<=bearer )[\w.~+/=-]{8,}",
        r"(?i)((?<=[?&]signature=)|(?<=[?&]token=)|(?<=[?&]key=))[^&\s]+",
    )
]
_SETTING = re.compile(r"(?i)^(\s*[\w.\"'-]+\s*[=:]\s*)(.+)$")
"""A line of a configuration."""
_SHORTEST = 6
"""A secret of the environment that is shorter would take ordinary words out."""


class Redactor:
    """Redacts by the name of a value, by its form, and by the secrets of the environment wherever they occur.

    The home directory becomes ``~``, which often has the name of its user. `count` is how much was redacted.
    """

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        known = {value for name, value in environment.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
        # The longer first: one may be a part of another.
        self._known = sorted(known, key=len, reverse=True)
        self._home = str(home) if home != Path("/") else ""
        self.count = 0

    def clean(self, value: Any, name: str = "") -> Any:
        """Return a JSON value without secrets; `name` is that of the field that it stands in."""
        if name and _NAMES.search(name) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return self._gone() if value else value
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.clean(inner, str(key)) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean(inner, name) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Return a line or more without secrets."""
        for secret in self._known:
            if secret in text:
                self.count += text.count(secret)
                text = text.replace(secret, _GONE)
        for pattern in _PATTERNS:
            text = pattern.sub(lambda _: self._gone(), text)
        lines = [self._line(line) for line in text.split("\n")]
        text = "\n".join(lines)
        # Not in the middle of a name: /rooted is not /root.
        return re.sub(rf"{re.escape(self._home)}(?=$|[/:\s\"'])", "~", text) if self._home else text

    def _line(self, line: str) -> str:
        found = _SETTING.match(line)
        if found is None or not _NAMES.search(re.split(r"[=:]", found[1])[0].strip().strip("\"'")):
            return line
        return f"{found[1]}{_GONE if _GONE in found[2] else self._gone()}"

    def _gone(self) -> str:
        self.count += 1
        return _GONE
