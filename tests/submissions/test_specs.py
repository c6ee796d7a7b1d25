"""A submission as one word, and limits: what is read back, what is refused and with which words."""

import msgspec
import pytest
from hypothesis import given

from leakcheck.errors import UsageError
from leakcheck.strategies import submissions
from leakcheck.submissions import (
    BEHAVIOURS,
    BUILTIN,
    LANGUAGES,
    Limits,
    Spec,
    Submission,
    parse_spec,
    parse_specs,
    spec,
)

EVERYTHING = submissions(
    list(LANGUAGES), statuses=("OK", "TLE", "RE", "MLE", "OLE"), time_limits=("wall", "cpu"), hostile=True
)


@given(EVERYTHING)
def test_a_spec_reads_back_as_what_it_was_written_from(wanted: Spec) -> None:
    assert parse_spec(wanted.word) == wanted
    assert parse_spec(wanted.word).word == wanted.word


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_behaviour_of_a_language_needs_no_limit_in_its_spec(language: str) -> None:
    for behaviour in BEHAVIOURS.values():
        if language in behaviour.languages:
            assert spec(language, behaviour.name).word == f"{language}/{behaviour.name}"


def test_the_spec_of_the_documentation_is_what_it_says() -> None:
    wanted = parse_spec("cpp/spin@wall=0.5,cpu=1,memory=64M,processes=16")
    assert wanted.limits == Limits(wall=0.5, cpu=1, memory=64 << 20, processes=16)
    assert wanted.word == "cpp/spin@wall=0.5,cpu=1,memory=64M,processes=16"
    assert repr(wanted) == "parse_spec('cpp/spin@wall=0.5,cpu=1,memory=64M,processes=16')"
    assert [one.word for one in parse_specs(" cpp/spin@wall=0.5  python/hello\n")] == [
        "cpp/spin@wall=0.5",
        "python/hello",
    ]


@pytest.mark.parametrize("wall", [0.1, 1e-05, 1 / 3, 59.99999999999999, 3600])
def test_a_time_is_read_back_to_its_last_bit(wall: float) -> None:
    assert parse_spec(spec("python", "hello", wall=wall).word).limits.wall == wall


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give LANGUAGE/BEHAVIOUR"),
        ("hello", "give LANGUAGE/BEHAVIOUR"),
        ("cpp/spin python/hello", "give LANGUAGE/BEHAVIOUR"),
        ("cobol/hello", "unknown language 'cobol': one of python, cpp"),
        ("cpp/dance", "unknown behaviour 'dance': one of hello, cpu"),
        ("java/segv", "no segv in java: it exists in cpp, c, rust, python"),
        ("cpp/hello@", "'' is not a limit; give one of wall, cpu, memory"),
        ("cpp/hello@wall", "'wall' is not a limit"),
        ("cpp/hello@wal=1", "'wal=1' is not a limit"),
        ("cpp/hello@wall=1,wall=2", "wall is given twice"),
        ("cpp/hello@wall=nan", "wall=nan: give seconds"),
        ("cpp/hello@wall=-1", "wall=-1: give seconds"),
        ("cpp/hello@wall=0", "limit wall=0.0: give a number above 0, at most 3600"),
        ("cpp/hello@wall=1e9", "limit wall=1000000000.0: give a number above 0, at most 3600"),
        ("cpp/hello@wall=1_0", "wall=1_0: give seconds"),
        ("cpp/hello@wall=1M", "wall=1M: give seconds"),
        ("cpp/hello@memory=1.5M", "memory=1.5M: give bytes, such as 64M"),
        ("cpp/hello@memory=64MB", "memory=64MB: give bytes"),
        ("cpp/hello@memory=٣", "memory=٣: give bytes"),
        ("cpp/hello@processes=2K", "processes=2K: give a whole number"),
        ("cpp/hello@processes=0", "processes=0: give a number above 0"),
        ("java/hello@memory=64M", "memory=64M: java needs 256M at least"),
        ("java/hello@processes=8", "processes=8: java needs 64 at least"),
        ("cpp/sleep@wall=301", "give a limit of wall of at most 300 s: it ends by itself after 600 s"),
        ("cpp/spin@wall=400,cpu=400", "give a limit of wall or cpu of at most 300 s"),
        ("cpp/allocate@memory=600M", "give memory of at most 536870912 bytes: it stops at 1073741824"),
        ("cpp/flood@output=200M", "give output of at most 134217728 bytes"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_by_the_part(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"submission {text!r}: ")


def test_an_empty_spec_is_refused() -> None:
    with pytest.raises(UsageError, match="has no submission"):
        parse_specs(" ")


@pytest.mark.parametrize("name", Limits.__struct_fields__)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1 << 50, True, "1"])
def test_a_limit_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"limit {name}="):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_a_part_of_a_byte_is_refused() -> None:
    with pytest.raises(UsageError, match=r"limit memory=1\.5: give a whole number"):
        Limits(memory=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown limit 'time'"):
        spec("python", "hello", time=1)


def test_a_command_has_limits_and_no_more_for_a_spec_than_its_name() -> None:
    assert BUILTIN["timeout"].name == "timeout"
    assert BUILTIN["timeout"].wall == 1
    with pytest.raises(UsageError, match="limit wall=0"):
        msgspec.structs.replace(BUILTIN["ok"], wall=0)
    assert Submission(name="x", program=("/bin/true",)).bundle == ""
