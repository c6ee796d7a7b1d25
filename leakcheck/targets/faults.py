"""Reads a TOML table into a structure, and collects every fault of it with its field and line."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

Faults: TypeAlias = dict[str, list[str]]
"""Field, such as ``probe.namespaces`` or ``files[0].path`` → what is wrong with it."""

_HEADER = re.compile(r"\s*(\[\[?)")


def faults_of_types(kind: type[msgspec.Struct], table: dict[str, Any], at: str = "") -> Faults:
    """Return the fields of `table` that are missing, unknown or of the wrong type for the structure `kind`."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    found: Faults = {}
    for name in table.keys() - fields.keys():
        found[f"{at}{name}"] = [f"unknown field; one of {', '.join(fields)}"]
    for name, field in fields.items():
        if name not in table:
            if field.required:
                found[f"{at}{name}"] = ["missing; every adapter has it" if not at else "missing"]
        else:
            found |= _faults_of_value(field.type, table[name], f"{at}{name}")
    return found


def _faults_of_value(kind: Any, value: Any, at: str) -> Faults:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return faults_of_types(kind, value, f"{at}.")
    (inner, *_) = getattr(kind, "__args__", None) or (None,)
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, list):
        each = [_faults_of_value(inner, one, f"{at}[{number}]") for number, one in enumerate(value)]
        return {field: wrong for faults in each for field, wrong in faults.items()}
    try:
        msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$")
        return {f"{at}{place.rstrip('`')}": [words]}
    return {}


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


def describe(faults: Faults, lines: dict[str, int]) -> str:
    """Return all faults in one line, in the order of the file; those of fields that it lacks come first."""
    placed = []
    for field, wrong in faults.items():
        near = field
        while near and near not in lines:
            near = near[: max(near.rfind("."), near.rfind("["), 0)]
        line = lines.get(near, 0)
        placed.append((line, f"line {line}: " * bool(line) + f"{field}: {' and '.join(wrong)}"))
    return "; ".join(words for _, words in sorted(placed, key=lambda one: one[0]))
