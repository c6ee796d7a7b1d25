"""Damages to a file of state, as data: what a crash, a bug or an operator makes of it.

A damage is named in one word with an argument: ``truncate=40``, ``flip=12.3``, ``drop=/state/pid``, ``missing``. Keys
in JSON pointers (RFC 6901) are also percent-encoded, since plans contain no commas and white space.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, unquote

__all__ = [
    "CUTS",
    "MOVES",
    "NONE",
    "PLACES",
    "WHOLE",
    "Found",
    "content_damages",
    "control_of",
    "damaged",
    "first_cut",
    "is_control",
    "is_damage",
    "kind_of",
    "model_of",
    "places_of",
]

NONE = "none"
"""No damage: what the kill alone leaves."""
PLACES = ("missing", "directory", "fifo", "dangling", "loop", "mode=0", "mode=777", "owner=65534")
"""What is done to the name, not to the content: nothing is there, or something else, or it is another's."""
Found: TypeAlias = bytes | Literal["directory", "link", "large"]
"""What stands at a name: a file's content; or why it has none to be damaged. A ``link`` leads nowhere."""
MOVES = ("undone", "both", "left")
"""Halves of a rename: only the old name, both names, and the old name with half of what was written to it."""
CUTS = ("posix", "ext4")
"""What of a run is on the disk after a power cut: as POSIX allows, or as ext4 does."""

_MIB = 1 << 20
_DEEP = 100_000
# What one value in a JSON document may become.
_VALUES = ("drop", "null", "retype", "huge", "less", "more", "negative", "unknown")
_POINTER = re.compile(r"(/[^/]*)*")
_BITS = 8
# Values of a document of which each kind of damage is tried, at least.
_POINTERS = 64
# After a change of the run's, from 1; with the bytes of it that were written.
_MOMENT = re.compile(r"[1-9]\d{0,5}(\.\d{1,6})?")
# After a step of the run; and then of the recovery.
_CUT = re.compile(rf"({'|'.join(CUTS)})(\.\d{{1,6}}\.\d{{1,6}}){{1,2}}")
# Before the run's first step.
_NO_STEP = "0.0"
Pointer: TypeAlias = tuple[str, ...]


def is_damage(word: str) -> bool:
    """Return whether `word` names a damage."""
    name, equals, where = word.partition("=")
    if word in (NONE, *PLACES) or word in _WHOLE:
        return True
    if name in ("truncate", "insert", "zeros"):
        return where.isdecimal()
    if name == "at":
        return _MOMENT.fullmatch(where) is not None
    if name in MOVES:
        return where.isdecimal() and int(where) > 0
    if name == "cut":
        return _CUT.fullmatch(where) is not None
    if name == "flip":
        return re.fullmatch(r"\d+\.[0-7]", where) is not None
    return bool(equals) and name in _VALUES and _POINTER.fullmatch(where) is not None


def kind_of(word: str) -> str:
    """Return the name of a damage, without its place."""
    return word.partition("=")[0]


def control_of(word: str) -> str:
    """Return what happens like the damage `word`, without damage: a kill, or a power cut in which nothing was lost."""
    return f"cut={model_of(word)}.{_NO_STEP}" if kind_of(word) == "cut" else NONE


def is_control(word: str) -> bool:
    """Return whether nothing is damaged."""
    return word == NONE or (kind_of(word) == "cut" and word == control_of(word))


def model_of(word: str) -> str:
    """Return the model of a power cut."""
    return word.partition("=")[2].partition(".")[0]


def first_cut(word: str) -> str:
    """Return the power cut in the run, if `word` is one in the recovery after it; empty if it is none."""
    model, *steps = word.partition("=")[2].split(".")
    return f"cut={'.'.join([model, *steps[:2]])}" if kind_of(word) == "cut" and len(steps) > 2 else ""


def places_of(found: Found) -> Iterator[str]:
    """Yield what can be done to the name of what was found: a link has no mode, and leads nowhere already."""
    return (one for one in PLACES if found != "link" or kind_of(one) not in ("mode", "dangling", "loop"))


def content_damages(content: Found, most: int) -> Iterator[str]:
    """Yield the damages that change this `content`; at most `most` lengths, and as many bits."""
    if isinstance(content, bytes):
        yield from (word for word in _words(content, most) if damaged(content, word) is not None)


def _words(content: bytes, most: int) -> Iterator[str]:
    yield from _WHOLE
    document = _document(content)
    if document is not None:
        pointers = [*_pointers(document)]
        some = (pointers[at] for at in _spread(range(len(pointers)), max(_POINTERS, most)))
        yield from (f"{name}={_written(pointer)}" for pointer in some for name in _VALUES)
    lengths = _spread(range(1, len(content)), most)
    yield from (f"truncate={length}" for length in lengths)
    # Half of a file was never written to the disk.
    yield from (f"zeros={at}" for at in _spread(range(len(content)), max(4, most // 8)))
    yield from (f"insert={at}" for at in _spread(range(len(content) + 1), max(4, most // 8)))
    yield from (f"flip={at}.{at % _BITS}" for at in _spread(range(len(content)), most))


def damaged(content: bytes, word: str) -> bytes | None:
    """Return `content` with the damage `word`; None if it has no such place, or does not change by it."""
    name, _, where = word.partition("=")
    if word in _WHOLE:
        made: bytes | None = _WHOLE[word](content)
    elif name in ("truncate", "zeros", "insert", "flip"):
        made = _of_bytes(name, content, where)
    else:
        made = _of_value(name, content, tuple(_read(part) for part in where.split("/")[1:]))
    return None if made == content else made


def _duplicate(content: bytes) -> bytes:
    """Return a document whose first key comes twice: readers take the first, the last, or neither."""
    document = _document(content)
    if not isinstance(document, dict) or not document:
        return content
    key = json.dumps(next(iter(document)))
    return b"{" + key.encode() + b":null," + content.lstrip()[1:]


def _garbage(content: bytes) -> bytes:
    return random.Random(0).randbytes(max(1, len(content)))  # noqa: S311 - any bytes do


_WHOLE: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": _garbage,
    "nested": lambda _: b"[" * _DEEP,
    "twice": lambda content: content + content,
    "oversized": lambda content: content + b" " * (16 * _MIB),
    "duplicate": lambda content: _duplicate(content),
    "crlf": lambda content: content.replace(b"\n", b"") + b"\r\n",
    "bom": lambda content: b"\xef\xbb\xbf" + content,
    "utf16": lambda content: content.decode("latin-1").encode("utf-16"),
}


def _of_bytes(name: str, content: bytes, where: str) -> bytes | None:
    place, _, bit = where.partition(".")
    at = int(place)
    if at > len(content) or (name == "flip" and at == len(content)):
        return None
    if name == "truncate":
        return content[:at]
    if name == "zeros":
        return content[:at] + bytes(len(content) - at)
    if name == "insert":
        return content[:at] + b"\xff" + content[at:]
    return content[:at] + bytes([content[at] ^ (1 << int(bit))]) + content[at + 1 :]


_SAME = object()


def _document(content: bytes) -> Any:
    """Return the JSON document that `content` is; None if it is none with members."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _of_value(name: str, content: bytes, pointer: Pointer) -> bytes | None:
    document = _document(content)
    if document is None:
        return None
    try:
        value = _at(document, pointer)
        if name == "drop" and not pointer:
            return None
        if name == "drop":
            holder = _at(document, pointer[:-1])
            del holder[pointer[-1] if isinstance(holder, dict) else int(pointer[-1])]
        elif (new := _changed(name, value)) is _SAME:
            return None
        elif not pointer:
            document = new
        else:
            holder = _at(document, pointer[:-1])
            holder[pointer[-1] if isinstance(holder, dict) else int(pointer[-1])] = new
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return json.dumps(document, separators=(",", ":")).encode()


def _changed(name: str, value: Any) -> Any:
    """Return what becomes of `value`; `_SAME` if this does not apply to it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "drop":
        return None
    if name == "null":
        return _SAME if value is None else None
    if name == "retype":
        return 7 if isinstance(value, str) else "seven" if not isinstance(value, list) else {}
    if name == "huge":
        return 10**400 if number else "A" * _MIB if isinstance(value, str) else _SAME
    if name in ("less", "more", "negative"):
        return {"less": value - 1, "more": value + 1, "negative": -1}[name] if number else _SAME
    return {**value, "unknown": 1} if name == "unknown" and isinstance(value, dict) else _SAME


def _pointers(document: Any) -> Iterator[Pointer]:
    """Yield the place of each value, of a list's only those of the first."""
    yield ()
    members: Sequence[tuple[str, Any]] = ()
    if isinstance(document, dict):
        members = [*document.items()]
    elif isinstance(document, list):
        members = [("0", document[0])] if document else []
    for key, value in members:
        yield from ((key, *rest) for rest in _pointers(value))


def _at(document: Any, pointer: Pointer) -> Any:
    for key in pointer:
        document = document[key] if isinstance(document, dict) else document[int(key)]
    return document


def _written(pointer: Pointer) -> str:
    return "".join(f"/{quote(key.replace('~', '~0').replace('/', '~1'), safe='~')}" for key in pointer)


def _read(part: str) -> str:
    return unquote(part).replace("~1", "/").replace("~0", "~")


def _spread(places: range, most: int) -> Iterator[int]:
    """Yield at most `most` of the places, evenly from the first to the last."""
    count = min(most, len(places))
    return (places[at * (len(places) - 1) // max(1, count - 1)] for at in range(count))


WHOLE = tuple(_WHOLE)
"""Damages to the whole content."""
