"""What is more of the same: places that differ in numbers or random parts alone."""

import random
import string

import pytest

from leakcheck.trials.similarity import fixed, similar


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/opt/grow-gaemkr", "/opt/grow-ejjpee"),
        ("/opt/grow-Xy12Zq", "/opt/grow-abcdef"),
        ("/tmp/srt-mux-2-0.sock", "/tmp/srt-mux-4711-0.sock"),
        ("/tmp/tmpk3j_x9ab", "/tmp/tmpqqqqqqqq"),
        ("process 5 (sleep): sleep 600", "process 4999 (sleep): sleep 600"),
        ("/run/a b", "/run/a b"),
    ],
)
def test_they_are_alike(one: str, other: str) -> None:
    assert similar(one, other)
    assert similar(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/opt/log-bounded", "/opt/grow-gaemkr"),
        ("/opt/lock", "/opt/data"),
        ("/opt/a/x", "/opt/a/x/y"),
        ("process 5 (sleep): sleep 600", "process 6 (sh): sleep 600"),
        ("/tmp/a-1", "/tmp/a.1"),
        ("", "/tmp"),
    ],
)
def test_they_are_not(one: str, other: str) -> None:
    assert not similar(one, other)
    assert not similar(other, one)


def test_a_random_name_is_told_from_a_word_however_its_cases_come() -> None:
    drawn = random.Random(1)
    letters = string.ascii_letters + string.digits
    names = ["".join(drawn.choices(letters, k=6)) for _ in range(1000)]
    # Of one case, or merely capitalized, it could be a word.
    assert sum(fixed(f"/opt/{name}") != "/opt/N" for name in names) < 25
    words = ["Makefile", "README", "payload", "NSJAIL"]
    assert [fixed(word) for word in words] == words
