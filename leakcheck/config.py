"""The configuration: targets, allow rules, and defaults of options; ``leakcheck.config_file`` finds its file."""

import dataclasses
import datetime
import functools
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leakcheck._native import check_allow
from leakcheck.allow import AllowRule
from leakcheck.errors import UsageError
from leakcheck.toml_lines import line_of, lines_of

CAMPAIGNS = ("leaks", "crash", "faults", "exhaust", "locks", "state", "stress", "soak")
COMMANDS = ("guard", "snapshot", "doctor", "verify", *CAMPAIGNS, "service", "pytest")
"""Whose options the file may set: each has a table."""
OWN, PYPROJECT = "leakcheck.toml", "pyproject.toml"
_KEYS = ("target", "targets", "allow", "profiles", *COMMANDS)
_ADAPTERS = Path(__file__).parent / "targets/adapters"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN_HEADER = re.compile(r"\s*\[\[?\s*[\"']?tool[\"']?\s*\.\s*[\"']?leakcheck\b")


@dataclass(frozen=True, slots=True)
class Setting:
    """An option that the file sets: its value, and the table and line (0: not known) where it is."""

    value: Any
    table: str
    line: int


@dataclass(frozen=True)
class Config:
    """A checked configuration file; without `path` there is none, and it sets nothing.

    `table` is the file's, or its part ``[tool.leakcheck]``; `profile` is the profile that is used.
    """

    path: Path | None = None
    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ""
    profile: str = ""

    @functools.cached_property
    def rules(self) -> list[AllowRule]:
        """The allow rules; the reason of each names the file and its line."""
        return [self._rule(table, f"allow[{number}]") for number, table in enumerate(self._list(self.table, "allow"))]

    @functools.cached_property
    def allow(self) -> str:
        """The allow rules as the text of an allow file."""
        return "\n".join(rule.to_toml() for rule in self.rules)

    @functools.cached_property
    def targets(self) -> dict[str, Path]:
        """The names of targets, each with the path of its adapter; a relative one is relative to the file."""
        found = {}
        for name, path in self._table(self.table, "targets").items():
            if not _NAME.fullmatch(name) or name.endswith(".toml"):
                raise self.error(f"targets.{name}", "a name has letters, digits, dashes, dots and underscores")
            if (_ADAPTERS / f"{name}.toml").exists():
                raise self.error(f"targets.{name}", "a built-in target has this name; give another one")
            if not isinstance(path, str) or not path:
                raise self.error(f"targets.{name}", "give the path of an adapter, as a string")
            found[name] = self._base / path
        return found

    def settings(self, command: str) -> dict[str, Setting]:
        """Return what the file sets for `command`, by option, with dashes; those of the profile come first."""
        found: dict[str, Setting] = {}
        if "target" in self.table and command in (*CAMPAIGNS, "verify"):
            found["target"] = Setting(self.table["target"], self._name(""), self._line("target"))
        tables = [command, *([f"profiles.{self.profile}.{command}"] if self.profile else [])]
        for name in tables:
            for key, value in self._below(name).items():
                found[key.replace("_", "-")] = Setting(value, self._name(name), self._line(f"{name}.{key}"))
        return found

    def for_pytest(self) -> dict[str, Setting]:
        """Return the checked settings of the pytest plugin: `kinds`, as a comma-separated text, `settle`, `unknown`."""
        found = self.settings("pytest")
        for key, setting in found.items():
            value = setting.value
            if key == "kinds":
                value = [value] if isinstance(value, str) else value
                if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value):
                    raise self.error_of("pytest", key, "give a list of kinds")
                found[key] = dataclasses.replace(setting, value=",".join(value))
            elif key == "settle":
                if type(value) not in (int, float) or not 0 <= value <= 3600:
                    raise self.error_of("pytest", key, "give seconds from 0 to 3600")
            elif key != "unknown":
                raise self.error_of("pytest", key, f"unknown option{hint(key, ('kinds', 'settle', 'unknown'))}")
            elif value not in ("warn", "fail"):
                raise self.error_of("pytest", key, "write warn or fail")
        return found

    def with_profile(self, name: str) -> "Config":
        """Return it with the profile of this name; raise `UsageError` if it has none."""
        known = self._table(self.table, "profiles")
        if name not in known:
            where = f"{self.path} has no such profile" if self.path else "there is no configuration file"
            raise UsageError(f"--profile {name!r}: {where}{hint(name, known)}")
        return dataclasses.replace(self, profile=name)

    def beside(self, targets: Any) -> Any:
        """Return a path or several, as of a target, relative to the file instead of the working directory."""
        if isinstance(targets, list):
            return [self.beside(one) for one in targets]
        return str(self._base / targets) if "/" in targets or targets.endswith(".toml") else targets

    def check(self) -> None:
        """Raise a `UsageError`, with line, for the first unknown key or wrong rule; options are not looked at."""
        self._known("", self.table, _KEYS)
        if not isinstance(self.table.get("target", ""), str):
            raise self.error("target", "give the name of a target, as a string")
        for name in COMMANDS:
            self._table(self.table, name)
        for name, profile in self._table(self.table, "profiles").items():
            if not isinstance(profile, dict):
                raise self.error(f"profiles.{name}", f"write a table [profiles.{name}.COMMAND]")
            self._known(f"profiles.{name}.", profile, COMMANDS)
            for command in profile:
                self._table(profile, command, f"profiles.{name}.")
        _ = self.targets, self.allow

    def error(self, field: str, problem: str) -> UsageError:
        """Return the error that names the file, the line, and the field."""
        line = self._line(field)
        return UsageError(f"{self.path}: {f'line {line}: ' if line else ''}{field}: {problem}")

    def error_of(self, command: str, option: str, problem: str) -> UsageError:
        """Return the error of an option that the file sets for `command`."""
        at = self.settings(command)[option]
        place = f"line {at.line}: " if at.line else ""
        return UsageError(f"{self.path}: {place}{at.table} {option}: {problem}")

    def _rule(self, table: Any, at: str) -> AllowRule:
        if not isinstance(table, dict):
            raise self.error(at, "write a table [[allow]] with kind, reason, and optionally match and expires")
        self._known(f"{at}.", table, ("kind", "match", "reason", "expires"))
        match, expires = table.get("match", {}), table.get("expires")
        if not isinstance(match, dict) or not all(isinstance(glob, str) for glob in match.values()):
            raise self.error(f"{at}.match", "write a table of patterns, each a string")
        if expires is not None and type(expires) is not datetime.date:
            raise self.error(f"{at}.expires", "write a date such as 2027-01-31")
        for key in ("kind", "reason"):
            if not isinstance(table.get(key), str) or not table[key].strip():
                raise self.error(f"{at}.{key}", "missing; each rule has a kind and a reason")
        line = self._line(at)
        origin = f"{self.shown}{f', line {line}' if line else ''}"
        rule = AllowRule(table["kind"], match, reason=f"{table['reason']} (rule of {origin})", expires=expires)
        # Its line in this text is that in the file.
        check_allow("\n" * (line - 1) + rule.to_toml(), str(self.path))
        return rule

    def _known(self, at: str, table: Mapping[str, Any], known: Collection[str]) -> None:
        for key in table:
            if key not in known:
                raise self.error(f"{at}{key}", f"unknown key{hint(key, known)}")

    def _table(self, above: Mapping[str, Any], name: str, at: str = "") -> Mapping[str, Any]:
        found = above.get(name, {})
        if not isinstance(found, dict):
            raise self.error(f"{at}{name}", f"write a table [{at}{name}]")
        return found

    def _list(self, above: Mapping[str, Any], name: str) -> list[Any]:
        found = above.get(name, [])
        if not isinstance(found, list):
            raise self.error(name, f"write tables [[{name}]]")
        return found

    def _below(self, dotted: str) -> Mapping[str, Any]:
        found = self.table
        for name in dotted.split("."):
            found = found.get(name, {})
        return found

    @property
    def shown(self) -> str:
        """The path of the file as valid Unicode; empty if there is none."""
        return "" if self.path is None else os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def _base(self) -> Path:
        return (self.path or Path()).absolute().parent

    @property
    def _prefix(self) -> str:
        return "tool.leakcheck." if self.path is not None and self.path.name == PYPROJECT else ""

    def _name(self, table: str) -> str:
        inner = f"{self._prefix}{table}".rstrip(".")
        return f"[{inner}]" if inner else "the top"

    @functools.cached_property
    def _lines(self) -> dict[str, int]:
        return lines_of(_own_part(self.text) if self._prefix else self.text)

    def _line(self, field: str) -> int:
        return line_of(f"{self._prefix}{field}", self._lines)


def hint(word: str, known: Collection[str]) -> str:
    """Return a suggestion of what was meant instead of `word`, with a colon or semicolon before it."""
    import difflib

    if near := difflib.get_close_matches(word.replace("_", "-"), [*known], 1):
        return f"; did you mean {near[0]}?"
    return f": one of {', '.join(known)}" if known else ""


def parsed(path: Path, text: str) -> Config | None:
    """Return the checked configuration in `text`; None if it is a ``pyproject.toml`` without one."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply") from error
    if path.name == PYPROJECT:
        tools = table.get("tool", {})
        if not isinstance(tools, dict) or "leakcheck" not in tools:
            return None
        table = tools["leakcheck"]
        if not isinstance(table, dict):
            raise UsageError(f"{path}: tool.leakcheck: write a table [tool.leakcheck]")
    found = Config(path=path, table=table, text=text)
    found.check()
    return found


def _own_part(text: str) -> str:
    """Return `text` with all lines but those of ``[tool.leakcheck…]`` empty, which take long to find others in."""

    def lines() -> Iterator[str]:
        ours = False
        for line in text.splitlines():
            if line.lstrip().startswith("[") and _is_header(line):
                ours = _OWN_HEADER.match(line) is not None
            yield line if ours else ""

    return "\n".join(lines())


def _is_header(line: str) -> bool:
    try:
        tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return False
    return True
