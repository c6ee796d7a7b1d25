"""Where the fields of a TOML file begin."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

_HEADER = re.compile(r"\s*(\[\[?)")


def lines_of(text: str) -> dict[str, int]:
    """Return the line on which each field of the TOML `text` begins, counted from 1."""
    found: dict[str, int] = {}
    table, counts = "", dict[str, int]()
    statement, first = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if not statement:
            first = number
        statement += f"{line}\n"
        try:
            value = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if header := _HEADER.match(statement):
            table = _dotted(value)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table += f"[{counts[table]}]"
            found.setdefault(table, first)
            table += "."
        for field in _fields(value, table) if not header else ():
            found.setdefault(field, first)
        statement = ""
    return found


def line_of(field: str, lines: dict[str, int]) -> int:
    """Return the line of `field`, or of the nearest table around it; 0 if neither is known."""
    while field and field not in lines:
        field = field[: max(field.rfind("."), field.rfind("["), 0)]
    return lines.get(field, 0)


def _dotted(value: Any) -> str:
    """Return the dotted name of the one table that a header opens."""
    names = []
    while value and isinstance(value, dict):
        (name, value) = next(iter(value.items()))
        names.append(name)
    return ".".join(names)


def _fields(value: Any, at: str) -> Iterator[str]:
    inner = value.items() if isinstance(value, dict) else ()
    for name, below in inner:
        yield f"{at}{name}"
        yield from _fields(below, f"{at}{name}.")
        for number, one in enumerate(below) if isinstance(below, list) else ():
            yield f"{at}{name}[{number}]"
            yield from _fields(one, f"{at}{name}[{number}].")
