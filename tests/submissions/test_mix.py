"""Mixes: shares, what is sampled, and what of it a target can tell."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakcheck.errors import UsageError
from leakcheck.submissions import BEHAVIOURS, DEFAULT_MIX, LANGUAGES, Mix, parse_spec, sample
from leakcheck.targets import Target, builtin, load
from leakcheck.targets.compatibility import incompatibility, sample_for

THREE = ["cpp", "java", "python"]
ALL = ("OK", "TLE", "MLE", "RE", "OLE")


def test_a_mix_reads_back() -> None:
    mix = Mix.parse("OK=70, TLE=20,MLE=5,RE=5")
    assert mix == DEFAULT_MIX
    assert str(mix) == "OK=70,TLE=20,MLE=5,RE=5"
    assert Mix.parse(str(mix)) == mix
    assert str(mix.only(("OK", "RE"))) == "OK=70,RE=5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'': give STATUS=SHARE"),
        ("OK", "'OK': give STATUS=SHARE, STATUS one of OK, TLE, MLE, RE, OLE"),
        ("IE=1", "'IE=1': give STATUS=SHARE"),
        ("OK=1,OK=2", "OK is given twice"),
        ("OK=x", "OK=x: give a number"),
        ("OK=nan", "OK=nan: give a number from 0"),
        ("OK=-1", "OK=-1.0: give a number from 0"),
        ("OK=inf", "OK=inf: give a number from 0"),
        ("OK=0,RE=0", "nothing has a share above 0"),
    ],
)
def test_a_mix_that_is_wrong_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Mix.parse(text)
    assert said in str(caught.value)


@given(
    st.dictionaries(st.sampled_from(ALL), st.integers(0, 100), min_size=1).filter(lambda shares: any(shares.values())),
    st.integers(0, 500),
)
def test_shares_are_exact_up_to_rounding(shares: dict[str, int], n: int) -> None:
    mix = Mix(shares)  # type: ignore[arg-type]
    counts = mix.counts(n)
    assert sum(counts.values()) == n
    for status, count in counts.items():
        assert abs(count - shares[status] * n / sum(shares.values())) < 1


def test_what_is_dealt_has_the_shares_and_all_languages() -> None:
    sampled = sample(Mix.parse("OK=60,TLE=20,MLE=10,RE=5,OLE=5"), THREE, 200, 7, reports=ALL)
    assert Counter(one.about.expect for one in sampled) == {"OK": 120, "TLE": 40, "MLE": 20, "RE": 10, "OLE": 10}
    assert set(Counter(one.language for one in sampled).values()) <= set(range(60, 74))
    assert len({one.word for one in sampled}) > 180
    assert not any(one.about.hostile for one in sampled)


def test_the_same_seed_deals_the_same_and_another_one_other() -> None:
    first, again, other = (sample(DEFAULT_MIX, THREE, 50, seed, reports=ALL) for seed in (1, 1, 2))
    assert first == again != other
    assert [one.about.expect for one in first] != sorted(one.about.expect for one in first)


def test_limits_that_are_dealt_leave_a_loaded_machine_its_time() -> None:
    for one in sample(DEFAULT_MIX, list(LANGUAGES), 500, 3, reports=ALL, time_limits=("wall", "cpu"), hostile=True):
        limits = one.limits
        assert parse_spec(one.word) == one
        if not one.about.ends_by:
            assert limits.wall >= 60
            assert limits.cpu >= 10
        else:
            assert 0.2 <= min(limits.wall, limits.cpu) <= 1
            assert limits.cpu > 1 or limits.wall >= 60


def test_each_hostile_one_is_dealt_where_wanted() -> None:
    sampled = sample(Mix.parse("OK=1"), ["c"], 100, 0, hostile=True)
    hostile = {one.name for one in BEHAVIOURS.values() if one.hostile}
    assert {one.behaviour for one in sampled if one.about.hostile} == hostile


def test_a_target_that_takes_whole_seconds_gets_them() -> None:
    for one in sample(Mix.parse("TLE=1"), ["c"], 30, 0, shortest_wall=1):
        assert one.limits.wall in (1, 2)


@pytest.mark.parametrize(
    ("mix", "languages", "n", "said"),
    [
        ("OK=1,MLE=1", THREE, 10, "the target cannot report MLE; it reports OK, RE, TLE"),
        ("OK=1", [], 10, "no language to sample"),
        ("OK=1", ["cobol"], 10, "unknown language 'cobol'"),
        ("OK=1", THREE, -1, "sample -1 submissions"),
    ],
)
def test_what_cannot_be_dealt_is_refused(mix: str, languages: list[str], n: int, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(Mix.parse(mix), languages, n, 0)
    assert said in str(caught.value)


def test_a_share_of_nothing_needs_nothing() -> None:
    assert sample(Mix.parse("OK=1,MLE=0"), ["c"], 0, 0) == []


@pytest.mark.parametrize("target", builtin(), ids=lambda target: target.name)
def test_all_that_is_dealt_for_a_target_fits_it(target: Target) -> None:
    for one in sample_for(target, DEFAULT_MIX.only(target.adapter.reports), None, 60, 5, hostile=True):
        assert incompatibility(target, one) == ""


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("isolate", "java/hello", "isolate does not run java: --mem limits"),
        ("proot", "c/ignore_sigterm", "proot does not report ignore_sigterm correctly"),
        ("bwrap", "c/allocate", "bwrap cannot report MLE; it reports OK, TLE, RE"),
        ("hakoniwa", "c/sleep@wall=0.5", "hakoniwa does not accept a wall limit below 1 s"),
        ("bwrap", "c/spin@wall=60,cpu=1", "bwrap does not report TLE for cpu; give a longer limit of it"),
        ("isolate", "c/spin@wall=60,cpu=1", ""),
        ("bwrap", "c/spin", ""),
    ],
)
def test_what_does_not_fit_a_target_is_told_why(name: str, word: str, said: str) -> None:
    why = incompatibility(load(name), parse_spec(word))
    assert why.startswith(said)
    assert bool(why) == bool(said)


def test_a_language_that_a_target_cannot_run_is_refused_by_the_reason() -> None:
    with pytest.raises(UsageError, match="isolate does not run java: --mem"):
        sample_for(load("isolate"), Mix.parse("OK=1"), ["c", "java"], 3, 0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('reports = ["TLE"]', "reports: lacks OK"),
        ('reports = ["OK", "WA"]', "line 5: reports[1]"),
        ("time_limits = []", "time_limits: is empty"),
        ('languages_not = { cobol = "x" }', "languages_not: unknown name 'cobol'; one of c, cpp"),
        ('behaviours_not = { dance = "x" }', "behaviours_not: unknown name 'dance'"),
        ('languages_not = { c = " " }', "languages_not: c: give the reason"),
    ],
)
def test_an_adapter_that_says_it_wrong_is_refused(tmp_path: Path, line: str, said: str) -> None:
    text = 'name = "mine"\nsummary = "x"\nlaunch = ["/bin/sh", "{program}"]\nprobe = { none = "nothing" }\n'
    (tmp_path / "mine.toml").write_text(text + line)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "mine.toml")
    assert said in str(caught.value)
