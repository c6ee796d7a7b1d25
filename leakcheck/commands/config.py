"""``leakcheck config``: the options of each command, and where each value comes from."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import typer
import typer.core
from rich.console import Console
from rich.text import Text

from leakcheck.commands.defaults import Configured, options_of, values
from leakcheck.config import COMMANDS, Config, Setting, hint
from leakcheck.deliver import print_json
from leakcheck.errors import UsageError
from leakcheck.render import line, print_lines

_FROM = {"COMMANDLINE": "command line", "DEFAULT_MAP": "file"}


class Value(msgspec.Struct, omit_defaults=True, frozen=True):
    """The value of an option. `origin` is ``command line``, ``file`` or ``default``; a file has `table` and `line`."""

    value: Any
    origin: str = msgspec.field(name="from")
    table: str = ""
    line: int = 0


def config(context: typer.Context, words: Sequence[str], *, as_json: bool) -> int:
    """Print the options of all commands, or of the one that `words` name, with its options; always returns 0.

    It checks the whole file, each profile of it too.
    """
    above = context.find_root()
    chosen: Configured = above.obj
    chosen.quiet = True
    found = chosen.config
    if words and words[0] not in COMMANDS:
        raise UsageError(f"config {words[0]!r}: a command without options in a configuration{hint(words[0], COMMANDS)}")
    for profile in found.table.get("profiles", {}):
        for name in COMMANDS:
            _checked(found.with_profile(profile), above, name)
    options = {name: _of(found, above, name, words[1:] if words else []) for name in COMMANDS if name in words[:1]}
    options = options or {name: _of(found, above, name, []) for name in COMMANDS}
    if as_json:
        print_json(msgspec.json.encode(_whole(found, options)).decode())
    else:
        print_lines(_lines(found, options), Console())
    return 0


def _command(above: Any, name: str) -> Any:
    group = above.command
    assert isinstance(group, typer.core.TyperGroup)  # noqa: S101 - the top of the command line is one
    return group.get_command(above, name)


def _checked(found: Config, above: Any, name: str) -> None:
    if name == "pytest":
        found.for_pytest()
    else:
        values(found, _command(above, name))


def _of(found: Config, above: Any, name: str, words: Sequence[str]) -> dict[str, Value]:
    """Return the options of a command, as it has them with these words of its command line."""
    if name == "pytest":
        if words:
            raise UsageError(f"config pytest {words[0]}: its options are those of pytest")
        return {key: _value(one.value, "file", one) for key, one in sorted(found.for_pytest().items())}
    command, settings = _command(above, name), found.settings(name)
    context = command.make_context(name, [*words], parent=above)
    shown = {}
    for key, param in options_of(command).items():
        source = context.get_parameter_source(param.name)
        origin = _FROM.get("" if source is None else source.name, "default")
        value = context.params[param.name]
        value = [*value] if isinstance(value, tuple) else value
        shown[key] = _value(value, origin, settings.get(key))
    return shown


def _value(value: Any, origin: str, setting: Setting | None) -> Value:
    if origin == "file" and setting is not None:
        return Value(value, origin, setting.table, setting.line)
    return Value(value, origin)


def _whole(found: Config, options: dict[str, dict[str, Value]]) -> dict[str, Any]:
    return {
        "schema": "leakcheck.config/1",
        "file": found.shown or None,
        "profile": found.profile,
        "targets": {name: str(path) for name, path in found.targets.items()},
        "allow": [
            {"kind": rule.kind, "match": dict(rule.match), "reason": rule.reason, "expires": rule.expires}
            for rule in found.rules
        ],
        "options": options,
    }


def _lines(found: Config, options: dict[str, dict[str, Value]]) -> Iterator[Text]:
    profile = f", profile {found.profile}" if found.profile else ""
    where = f"{found.path}{profile}" if found.path else "none found from here upwards"
    yield line(("configuration ", "bold"), where)
    for name, path in found.targets.items():
        yield line(f"targets.{name} = {path}")
    for rule in found.rules:
        match = "".join(f" {name}={glob}" for name, glob in rule.match.items())
        until = f", until {rule.expires}" if rule.expires else ""
        yield line(f"allow {rule.kind}{match}: {rule.reason}{until}")
    for command, several in options.items():
        for key, one in several.items():
            place = f"{one.table}{f', line {one.line}' if one.line else ''}" if one.origin == "file" else one.origin
            style = "dim" if one.origin == "default" else "green"
            yield line(f"{command}.{key} = {_shown(one.value)}  ", (place, style))


def _shown(value: Any) -> str:
    return "none" if value is None or value == [] else msgspec.json.encode(value).decode()
