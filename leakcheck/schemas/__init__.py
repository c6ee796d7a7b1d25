"""The JSON Schemas (draft 2020-12) of what leakcheck writes: ``campaign.json``, ``verify.json`` and ``report.json``.

Each is generated from the types that are written; ``python -m leakcheck.schemas`` writes the files of this package.
"""

from importlib import resources
from typing import Any

import msgspec

from leakcheck.campaigns.result import Result
from leakcheck.campaigns.visited import Visited
from leakcheck.report import Report
from leakcheck.trials.spans import Spans
from leakcheck.verify.result import Verifications

__all__ = ["SCHEMAS", "generated", "shipped"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"
SCHEMAS: dict[str, type[msgspec.Struct]] = {"campaign": Result, "verify": Verifications, "report": Report}
"""What is written, by the name of its schema's file."""
_FREE: tuple[type[msgspec.Struct], ...] = (Result, Visited, Spans)


def generated(name: str) -> str:
    """Return the schema of this name as it follows from the types, as indented JSON."""
    kind = SCHEMAS[name]
    (top, *_), parts = msgspec.json.schema_components([kind, *(() if kind is Report else _FREE)], ref_template=_REF)
    for part in parts.values():
        _fix(part)
    title = parts[kind.__name__]["properties"]["schema"]["const"]
    schema = {"$schema": _DRAFT, "title": title, **top, "$defs": dict(sorted(parts.items()))}
    return msgspec.json.format(msgspec.json.encode(schema)).decode() + "\n"


def _fix(part: dict[str, Any]) -> None:
    """Say what the types of a component do not: a version is just this one, and what is in the points of a campaign."""
    fields: dict[str, Any] = part.get("properties", {})
    if "schema" in fields:
        fields["schema"] = {"const": fields["schema"]["default"]}
        part["required"] = sorted({*part.get("required", []), "schema"})
    if "points" in fields:
        visited = {"type": "array", "items": {"$ref": _REF.format(name="Visited")}}
        fields["points"]["properties"] = {"map": visited, "lives": {"$ref": _REF.format(name="Spans")}}


def shipped(name: str) -> str:
    """Return the schema of this name as it comes with leakcheck."""
    return resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
