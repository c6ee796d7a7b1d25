"""Allow rules, from Python and from files."""

import datetime
import tomllib
from pathlib import Path

import pytest

from leakcheck import AllowRule, UsageError
from leakcheck.allow import read_allow_file, to_toml


@pytest.mark.parametrize(
    "text", ["plain", 'quo"te', "back\\slash", "new\nline", "\x7f del", "\x1b", "ünï ✓ 😀", "[[allow]]", "''' #"]
)
def test_any_text_survives_toml(text: str) -> None:
    rule = AllowRule("file", {"path": text}, reason=text, expires=datetime.date(2099, 1, 31))
    (table,) = tomllib.loads(rule.to_toml())["allow"]
    assert table == {"kind": "file", "match": {"path": text}, "reason": text, "expires": datetime.date(2099, 1, 31)}


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        AllowRule("file", {"path": "\udcff"}, reason="x").to_toml()


def test_a_rule_alone_and_several_are_taken() -> None:
    rule = AllowRule("fd", reason="why")
    assert to_toml(None) is None
    assert to_toml(rule) == rule.to_toml()
    assert to_toml([rule, rule]) == rule.to_toml() + "\n" + rule.to_toml()


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (AllowRule("nonsense", reason="x"), "unknown kind"),
        (AllowRule("fd", reason=" "), "reason"),
        (AllowRule("fd", {"colour": "red"}, reason="x"), "no detail"),
        (AllowRule("fd", {"target": "["}, reason="x"), "pattern"),
        (AllowRule("fd", reason="x", expires=datetime.date(2020, 1, 1)), "expired on 2020-01-01"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: AllowRule, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        to_toml(rule)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'[[allow]]\nkind = "fd"\n', "reason"),
        (b'[[allow]]\nkind = "fd"\nreason = "x"\ncolour = "red"\n', "colour"),
        (b'[[allowed]]\nkind = "fd"\nreason = "x"\n', "allowed"),
        (b"[[allow]", "line 1"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'[[allow]]\nkind = "fd"\nreason = "x"\nexpires = 2020-01-01\n', "line 1: expired"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "allow.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_allow_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=f"read allow file {path}"):
            read_allow_file(path)
