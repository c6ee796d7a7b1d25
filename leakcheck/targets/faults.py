"""Reads a TOML table into a structure, and collects every fault of it with its field and line."""

from typing import Any, TypeAlias

import msgspec

from leakcheck.toml_lines import line_of

Faults: TypeAlias = dict[str, list[str]]
"""Field, such as ``probe.namespaces`` or ``files[0].path`` → what is wrong with it."""


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


def describe(faults: Faults, lines: dict[str, int]) -> str:
    """Return all faults in one line, in the order of the file; those of fields that it lacks come first."""
    placed = []
    for field, wrong in faults.items():
        line = line_of(field, lines)
        placed.append((line, f"line {line}: " * bool(line) + f"{field}: {' and '.join(wrong)}"))
    return "; ".join(words for _, words in sorted(placed, key=lambda one: one[0]))
