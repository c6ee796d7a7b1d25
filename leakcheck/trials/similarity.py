"""Decides which residue is more of the same: one kind, at paths that differ only in numbers or random parts."""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from leakcheck.report import Leak

_T = TypeVar("_T")

_WORDS = re.compile(r"(\w+)")
# Numbers, and what mktemp and tempfile draw: "tmp" and letters, or both cases in one word of six or more, unless it is
# merely capitalized.
_VARYING = re.compile(r"\b(?:(?P<stem>[a-z_]*)\d+|\w*\d\w*|tmp\w{6,}|(?=\w*(?:[a-z][A-Z]|[A-Z][A-Z][a-z]))\w{6,})\b")
# mktemp(1) requires three X, but six are usual; Python's tempfile draws eight characters.
RANDOM = 6


def count_similar(leak: Leak, leaks: Iterable[Leak]) -> int:
    """Return how many of `leaks` are similar to `leak`."""
    return sum(same(leak, other) for other in leaks)


def grouped(ones: Iterable[_T], like: Callable[[_T, _T], bool]) -> list[list[_T]]:
    """Group the leaks that are similar to the first of a group."""
    groups: list[list[_T]] = []
    for one in ones:
        if (group := next((group for group in groups if like(group[0], one)), None)) is not None:
            group.append(one)
        else:
            groups.append([one])
    return groups


def same(leak: Leak, other: Leak) -> bool:
    """Return whether one is more of the same as the other."""
    if leak.class_ == "respawning" or other.class_ == "respawning":
        # An observation reports these as one, with their number.
        return leak.class_ == other.class_
    return other.kind == leak.kind and similar(place_of(leak), place_of(other))


def place_of(leak: Leak) -> str:
    """Return its location: path, target or name, or else its label."""
    resource = leak.evidence.get("resource", {})
    for field in ("path", "target", "name"):
        if isinstance(value := resource.get(field), str) and value:
            return value
    return leak.label


def fixed(text: str) -> str:
    """Return a place or message without pids, other numbers and random names: the same in every campaign."""
    return _VARYING.sub(lambda found: f"{found['stem'] or ''}N", text)


def alike(one: str, other: str) -> bool:
    """Return whether two locations are the same apart from what `fixed` removes, by which it knows at least one."""
    ones, others = _WORDS.split(one), _WORDS.split(other)
    return len(ones) == len(others) and all(map(_words_alike, ones, others))


def _words_alike(one: str, other: str) -> bool:
    if fixed(one) == fixed(other):
        return True
    # A random name may happen to have neither a digit nor both cases, or digits only at its end.
    return "N" in (fixed(one), fixed(other)) and len(one) == len(other) >= RANDOM


def similar(one: str, other: str) -> bool:
    """Return whether two locations differ only in words with digits, or of equal length that can be random."""
    ones, others = _WORDS.split(one), _WORDS.split(other)
    return len(ones) == len(others) and all(map(_words_similar, ones, others))


def _words_similar(one: str, other: str) -> bool:
    if one == other:
        return True
    if not one or not other or not (one[0].isalnum() or one[0] == "_"):
        return False
    both_numbered = any(c.isdigit() for c in one) and any(c.isdigit() for c in other)
    return both_numbered or len(one) == len(other) >= RANDOM
