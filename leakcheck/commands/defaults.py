"""The configuration file as defaults of the command line: read when a command first needs it."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core
import typer.main

from leakcheck.deliver import notify
from leakcheck.errors import UsageError

if TYPE_CHECKING:
    from leakcheck.config import Config, Setting

ONCE = frozenset(
    {
        "output",
        "report",
        "json",
        "allow",
        "demo-leak",
        "keep",
        "plan",
        "explain",
        "format",
        "submission",
        "history",
        "openapi",
        "resume",
        "cluster",
    }
)
"""Options of one run, which only the command line sets."""


class Configured:
    """The configuration that a command line chooses; the file is looked for and read when it is first needed."""

    def __init__(self, path: Path | None, profile: str | None, *, without: bool) -> None:
        if without and (path is not None or profile is not None):
            raise UsageError("--no-config: cannot be combined with --config or --profile")
        self._path, self._profile, self._without = path, profile, without
        self.quiet = False
        """Whether to use a file without a word."""

    @functools.cached_property
    def config(self) -> "Config":
        """The configuration; empty if there is no file."""
        from leakcheck.config import Config
        from leakcheck.config_file import find, read

        if self._without:
            return Config()
        found = find() if self._path is None else read(self._path)
        if self._profile is not None:
            found = found.with_profile(self._profile)
        if found.path is not None and not self.quiet:
            notify(f"configuration: {found.path}{f', profile {found.profile}' if found.profile else ''}")
        return found

    def begin(self, context: typer.Context) -> None:
        """Let the command that `context` runs have its defaults from here."""
        context.obj = self
        context.default_map = _Commands(self, context)


class _Commands(dict[str, Any]):
    """The defaults of each command, by its name; to typer a dictionary."""

    def __init__(self, configured: Configured, context: typer.Context) -> None:
        super().__init__()
        self._configured, self._context = configured, context

    def get(self, name: str, default: Any = None) -> Any:
        """Return the defaults of this command, which are read when one of them is asked for."""
        from leakcheck.config import COMMANDS

        group = self._context.command
        if name not in COMMANDS or not isinstance(group, typer.core.TyperGroup):
            return default
        command = group.get_command(self._context, name)
        return default if command is None else _Options(self._configured, command)


class _Options(dict[str, Any]):
    """The defaults of one command's parameters, by their names."""

    def __init__(self, configured: Configured, command: Any) -> None:
        super().__init__()
        self._configured, self._command = configured, command

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        return values(self._configured.config, self._command)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the default of the parameter of this name; for a help or a completion, without the file."""
        now = typer.main.get_current_context(silent=True)  # type: ignore[attr-defined]
        return default if now is not None and now.resilient_parsing else self._values.get(name, default)


def configured(context: typer.Context) -> "Config":
    """Return the configuration of the command line that `context` is of."""
    found: Configured = context.find_root().obj
    return found.config


def options_of(command: Any) -> dict[str, Any]:
    """Return those parameters of `command` that the file can set, by the name there: the long option without dashes."""
    long = [(max(param.opts, key=len), param) for param in command.params if not getattr(param, "hidden", False)]
    found = {option[2:]: param for option, param in long if option.startswith("--")}
    return {name: param for name, param in found.items() if name not in ONCE | {"help"}}


def values(config: "Config", command: Any) -> dict[str, Any]:
    """Return what `config` sets for `command`, by parameter; raise a `UsageError` for an option that is wrong."""
    from leakcheck.config import hint

    known, found = options_of(command), {}
    for key, setting in config.settings(command.name).items():
        if key in ONCE:
            raise config.error_of(command.name, key, "is for the command line only")
        if key not in known:
            raise config.error_of(command.name, key, f"unknown option{hint(key, known)}")
        try:
            value = _value(known[key], setting)
        except (ValueError, typer.TyperException) as error:
            raise config.error_of(command.name, key, str(getattr(error, "message", error))) from error
        found[known[key].name] = config.beside(value) if key in ("target", "contract") else value
    return found


def _value(param: Any, setting: "Setting") -> Any:
    """Return the value as the command line would give it; raise `ValueError` for one of another type."""
    value, text = setting.value, param.type.name
    several = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if param.multiple:
        if not several and not isinstance(value, str):
            raise ValueError("give a string, or a list of them")
        return value if several else [value]
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError("write true or false")
        return value
    if text in ("int", "float"):
        if type(value) is not int and (text == "int" or type(value) is not float):
            raise ValueError("give a whole number" if text == "int" else "give a number")
        if not math.isfinite(value):
            raise ValueError("give a number")
    elif several and ",…" in (param.metavar or ""):
        value = ",".join(value)
    elif not isinstance(value, str):
        raise ValueError("give a string, or a list of them" if ",…" in (param.metavar or "") else "give a string")
    param.type.convert(value, param, None)
    return value


def from_file(context: typer.Context) -> set[str]:
    """Return the parameters whose value comes from the configuration."""
    return {name for name in context.params if _source(context, name) == "DEFAULT_MAP"}


def given_of(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return those of the parameters `names` that the command line gives."""
    return [name for name in names if _source(context, name) == "COMMANDLINE"]


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def target_named(context: typer.Context, value: str) -> str:
    """Return the target's name, or the path of its adapter if the configuration has the name."""
    if context.resilient_parsing or "/" in value or value.endswith(".toml"):
        return value
    from leakcheck.targets.registry import names

    if value in (known := names()):
        return value
    named = configured(context).targets
    if value in named:
        return str(named[value])
    from leakcheck.config import hint

    raise UsageError(f"unknown target {value!r}{hint(value, [*named, *known])}; or the path of an adapter (.toml)")


def targets_named(context: typer.Context, value: list[str] | None) -> list[str] | None:
    """Return the targets as `target_named` does."""
    return [target_named(context, one) for one in value] if value else value
