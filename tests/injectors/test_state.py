"""Damages to state files: each has one word, which parses back, and changes the file in one way."""

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from injectors import parse
from injectors.damages import PLACES, content_damages, damaged, is_damage
from injectors.history import watched
from injectors.state import State, state_plan
from leakcheck.errors import UsageError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
contents = st.binary(max_size=64) | values.map(lambda value: json.dumps(value).encode())
STATE = b'{"version": 1, "pids": [7, 8], "name": "a/b, c", "deep": {"x~y": null, "on": true}}'


# It makes files of 16 MiB.
@settings(deadline=None, max_examples=40)
@given(contents)
def test_each_damage_changes_the_content_and_stands_in_a_plan_that_parses_back(content: bytes) -> None:
    words = list(content_damages(content, 4))
    assert len(set(words)) == len(words)
    for word in words:
        assert is_damage(word)
        plan = state_plan("/run/box-{box}.json", word)
        assert parse(str(plan)) == plan
        new = damaged(content, word)
        assert new is not None
        assert new != content


@given(st.text(alphabet="abcdefghij=/.%0123456789-", max_size=20))
def test_a_word_that_is_no_damage_is_refused_and_no_damage_fails(word: str) -> None:
    if is_damage(word):
        if word not in PLACES:
            damaged(STATE, word)
    else:
        with pytest.raises(UsageError, match="is no damage"):
            state_plan("/f", word) and parse(f"state:/f:{word or 'x'},sleeping")


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("drop=/version", lambda new: "version" not in new),
        ("more=/version", lambda new: new["version"] == 2),
        ("less=/version", lambda new: new["version"] == 0),
        ("negative=/pids/0", lambda new: new["pids"] == [-1, 8]),
        ("drop=/pids/0", lambda new: new["pids"] == [8]),
        ("huge=/pids/0", lambda new: new["pids"][0] == 10**400),
        ("huge=/name", lambda new: len(new["name"]) == 1 << 20),
        ("retype=/name", lambda new: new["name"] == 7),
        ("retype=/pids", lambda new: new["pids"] == {}),
        ("retype=/deep/on", lambda new: new["deep"]["on"] == "seven"),
        ("null=/deep", lambda new: new["deep"] is None),
        ("retype=/deep/x~0y", lambda new: new["deep"]["x~y"] == "seven"),
        ("unknown=/deep", lambda new: new["deep"]["unknown"] == 1),
        ("retype=", lambda new: new == "seven"),
    ],
)
def test_one_value_of_a_document_is_damaged(word: str, wanted) -> None:  # type: ignore[no-untyped-def]
    assert word in [*content_damages(STATE, 1)]
    new = damaged(STATE, word)
    assert new is not None
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert wanted(json.loads(new))
    finally:
        sys.set_int_max_str_digits(limit)


def test_every_length_and_one_bit_of_each_byte_are_tried_of_a_small_file() -> None:
    words = [*content_damages(b"0123456789", 512)]
    assert [word for word in words if word.startswith("truncate")] == [f"truncate={length}" for length in range(1, 10)]
    assert sum(word.startswith("flip") for word in words) == 10
    assert damaged(b"0123456789", "truncate=4") == b"0123"
    assert damaged(b"0123456789", "flip=1.0") == b"0023456789"
    assert damaged(b"0123456789", "zeros=8") == b"01234567\0\0"
    assert damaged(b"0123456789", "flip=10.0") is None


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("state:truncate=4,sleeping", "it names no file"),
        ("state:/run/s.json:shorten=4,sleeping", "'shorten=4' is no damage"),
        ("state:/run/s.json:truncate=x,sleeping", "'truncate=x' is no damage"),
        ("state:/run/s.json:flip=3.8,sleeping", "'flip=3.8' is no damage"),
        ("state:/run/s.json:drop=pid,sleeping", "'drop=pid' is no damage"),
        ("state:/run/s.json:missing", "give the flag sleeping"),
        ("state:/run/s.json:missing,sleeping,quiesced", "give the flag sleeping, alone or with beside"),
    ],
)
def test_the_error_names_the_wrong_part(line: str, wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(line)
    assert wrong in str(error.value)


class Run:
    """A run whose state files are those of a directory."""

    def __init__(self, directory: Path) -> None:
        self.files = [str(path) for path in sorted(directory.iterdir())]

    def state_files(self, declared: str) -> list[str]:
        assert declared == "/state"
        return self.files

    @contextlib.contextmanager
    def directory(self, path: str) -> Iterator[int]:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def damage(directory: Path, word: str) -> bool:
    return State.of(state_plan("/state", word)).between(Run(directory))  # type: ignore[arg-type]


@pytest.mark.parametrize("word", [*PLACES, "truncate=3", "empty"])
def test_a_file_is_damaged_where_it_stands_and_no_link_is_followed(tmp_path: Path, word: str) -> None:
    if word.startswith("owner") and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    outside = tmp_path / "outside"
    outside.write_text("not to be touched")
    state = tmp_path / "state"
    state.mkdir()
    (state / "link").symlink_to(outside)
    (state / "a.json").write_text("content")
    before = os.lstat(state / "link").st_ino
    assert damage(state, word)
    assert outside.read_text() == "not to be touched"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    assert os.lstat(state / "link").st_ino == before
    found = os.lstat(state / "a.json").st_mode if word != "missing" else 0
    kind = {"directory": stat.S_ISDIR, "fifo": stat.S_ISFIFO, "dangling": stat.S_ISLNK, "loop": stat.S_ISLNK}
    assert kind.get(word, lambda mode: mode == 0 or stat.S_ISREG(mode))(found)
    assert (state / "a.json").exists() == (word not in ("missing", "dangling")) if word != "loop" else True


def test_a_damage_without_a_file_or_a_place_did_not_happen(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    assert not damage(state, "missing")
    (state / "short").write_text("12")
    assert not damage(state, "truncate=40")
    assert not damage(state, "drop=/version")
    assert damage(state, "none")
    assert (state / "short").read_text() == "12"


@pytest.mark.parametrize(
    "word", ["at=3", "at=12.512", "undone=4", "both=4", "left=1", "cut=posix.7.0", "cut=ext4.1.12"]
)
def test_a_damage_with_an_instant_of_its_own_has_no_flag(word: str) -> None:
    plan = state_plan("/run/x", word)
    assert parse(str(plan)) == plan
    assert not plan.flags
    with pytest.raises(UsageError, match="has an instant of its own, and no flag"):
        parse(f"{plan},sleeping")


@pytest.mark.parametrize("word", ["at=0", "at=", "at=1.", "both=0", "cut=posix", "cut=xfs.1.1", "cut=ext4.1", "left"])
def test_an_instant_that_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="is no damage"):
        parse(f"state:/run/x:{word}")


def test_a_damage_while_the_supervisor_lives_has_a_flag_and_others_are_refused() -> None:
    plan = state_plan("/run/x", "missing", living=True)
    assert str(parse(str(plan))) == "state:/run/x:missing,living"
    with pytest.raises(UsageError, match="give the flag sleeping"):
        parse("state:/run/x:missing")
    with pytest.raises(UsageError, match="give the flag sleeping"):
        parse("state:/run/x:missing,timeout")


@pytest.mark.parametrize(
    ("declared", "directory"),
    [
        ("/run/refbox/box-{box}.json", "/run/refbox"),
        ("/run/runc/{name}/state.json", "/run/runc"),
        ("/var/lib/x/*/a/b.json", "/var/lib/x"),
        ("/state", "/"),
    ],
)
def test_all_above_the_first_part_of_a_path_that_varies_is_watched(declared: str, directory: str) -> None:
    assert watched(declared) == directory
