"""A soak runs submissions at a steady rate, keeps them in its store and not in memory, and goes on after a kill."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, cut_off, target

from leakcheck.campaigns import Result, Soak, SoakOptions, run
from leakcheck.campaigns.soak import seconds_of
from leakcheck.errors import UsageError
from leakcheck.evidence import Store
from leakcheck.stats.own_use import OwnUse
from leakcheck.submissions import parse_specs
from leakcheck.targets import Target

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
LITTERS = 'mktemp /var/lib/kept-XXXXXX >/dev/null; exec "$@"'
HELLO = parse_specs("python/hello")


def soaked(made: Target, store: Path, *, resume: bool = False, **options: Any) -> tuple[Result, SoakOptions]:
    chosen = SoakOptions(specs=HELLO, settle=0.1, **options)
    with Store(store, create=True) as opened, opened.record(Soak(), made, chosen, resume=resume) as recording:
        return run(Soak(), made, chosen, recording=recording), chosen


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("12h", 43200), ("7d", 604800)])
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7 days", "-1h", "1w", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a time such as 90s, 30m, 12h or 7d"):
        seconds_of(text)


def test_without_options_it_is_the_one_of_the_document() -> None:
    options = SoakOptions()
    assert (options.wanted, options.interval, options.limit_s) == (168_000, 3.6, 604_800)
    faster = SoakOptions(duration=15 * 3600, speed_up=30)
    assert (faster.wanted, round(faster.interval, 9), faster.limit_s) == (15_000, 0.12, 1800)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"submissions": 5}, "--submissions: a soak has a rate and a duration"),
        ({"rate": 0}, "--rate 0: give submissions an hour"),
        ({"speed_up": 0.5}, "--speed-up 0.5: give 1 to 100000"),
        ({"duration": 0}, "--duration 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        SoakOptions(**options).check()


def test_it_needs_a_store(tmp_path: Path) -> None:
    words = ["soak", "--target", target(tmp_path, 'exec "$@"').path]
    done = subprocess.run(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "soak: its submissions are too many for the memory" in done.stderr) == (2, True), done


@as_root
def test_submissions_come_at_their_times_and_the_result_says_that_it_was_compressed(tmp_path: Path) -> None:
    made, store = target(tmp_path, 'exec "$@"'), tmp_path / "s.db"
    result, options = soaked(made, store, duration=432, speed_up=60, concurrency=2)
    assert (result.trials, result.outcomes, result.records) == (120, {"clean": 120}, [])
    # The last one begins 119 intervals after the first.
    assert result.trials / result.rate >= 119 * options.interval
    criteria = {one.name: one for one in result.criteria}
    assert criteria["times faster than in real time: this is no soak of 7.2 minutes"].measured == 60
    assert criteria["slowdown, throughput"].limit == 1.01
    assert criteria["descriptors that leakcheck itself gained"].passed
    assert "submissions a minute" not in criteria
    with Store(store) as opened:
        (one,) = opened.runs()
        assert (one.trials, one.state) == (120, "ended")
        assert len({record.id for record in opened.trials(one)}) == 120
        assert opened.result(one) == result


@as_root
def test_after_a_kill_it_goes_on_with_what_nobody_had_looked_at_and_keeps_what_was_left(tmp_path: Path) -> None:
    made, store = target(tmp_path, LITTERS), tmp_path / "s.db"
    options = SoakOptions(specs=HELLO, settle=0.1, duration=936, speed_up=1000, concurrency=2)
    with Store(store, create=True) as opened, opened.record(Soak(), made, options, resume=False) as first:
        cut_off(first, 230)
        run(Soak(), made, options, recording=first)
        cut = opened.run(first.run.id)
        assert (cut.state, cut.trials) == ("running", 230)
    result, _ = soaked(made, store, resume=True, duration=936, speed_up=1000, concurrency=2)
    assert (result.trials, result.wanted, result.outcomes) == (260, 260, {"leaked": 260}), (
        result.coverage,
        result.error,
    )
    with Store(store) as opened:
        assert [run.id for run in opened.runs()] == [cut.id]
        records = opened.trials(opened.run(cut.id))
    assert [one.id for one in records] == [*range(260)]
    assert all(one.left for one in records)


@pytest.mark.parametrize(("last", "grown", "more"), [(100, 0, 0), (130, 30, 0), (100, 0, 3)])
def test_what_leakcheck_itself_uses_is_compared_after_the_first_third(last: int, grown: float, more: int) -> None:
    own = OwnUse()
    used = [(50, 4)] * 20 + [(100, 8), (160, 9)] * 10 + [(last, 8 + more), (last + 70, 9 + more)] * 10
    own._samples = [(float(at), rss << 20, fds) for at, (rss, fds) in enumerate(used)]
    assert (own.growth_mib, own.more_fds) == (grown, more)


@as_root
@pytest.mark.slow  # half an hour
def test_half_an_hour_of_it_leaves_memory_and_descriptors_of_leakcheck_as_they_were(tmp_path: Path) -> None:
    words = ["soak", "--target", "refbox", "--duration", "15h", "--speed-up", "30", "--store", tmp_path / "s.db"]
    words += ["--concurrency", "8", "--json"]
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as errors:
        argv = [*LEAKCHECK, *map(str, words)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, timeout=3600, check=False)
        out.seek(0)
        errors.seek(0)
        result = Result.from_json(out.read())
        assert done.returncode in (0, 1), errors.read()
    unmet = [name for name in result.failed if not name.startswith("slowdown")]
    assert (unmet, result.trials) == ([], 15_000)
