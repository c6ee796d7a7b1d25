"""What the strategies draw, and toward what it shrinks."""

import subprocess
import sys

import pytest
from hypothesis import find, given, settings

from leakcheck.errors import UsageError
from leakcheck.strategies import languages, limits, mixes, noted, replay_line, submissions
from leakcheck.submissions import DEFAULT_LIMITS, Limits, Spec, found_languages, parse_spec, parse_specs, spec

QUICK = settings(max_examples=200, database=None, deadline=None)


def test_the_simplest_is_one_line_in_python_under_the_usual_limits() -> None:
    assert find(mixes(), lambda _: True, settings=QUICK) == [spec("python", "hello")]
    assert find(limits(), lambda _: True, settings=QUICK) == DEFAULT_LIMITS
    assert find(languages(), lambda _: True, settings=QUICK) == found_languages()[0] == "python"
    assert find(submissions(), lambda one: one.about.expect == "TLE", settings=QUICK) == spec("python", "spin")


def test_a_failing_mix_shrinks_to_what_fails() -> None:
    found = find(mixes(), lambda mix: any(one.behaviour == "exit" for one in mix), settings=QUICK)
    assert found == [spec("python", "exit")]
    together = find(mixes(), lambda mix: {"TLE", "RE"} <= {one.about.expect for one in mix}, settings=QUICK)
    assert [one.word for one in together] in (["python/spin", "python/exit"], ["python/exit", "python/spin"])


def test_a_failure_comes_with_its_replay_line() -> None:
    @settings(QUICK)
    @given(mixes())
    def falsified(mix: list[Spec]) -> None:
        with noted("./my box.toml", mix, concurrency=2, seed=7):
            assert all(one.about.expect != "TLE" for one in mix)

    with pytest.raises(AssertionError) as caught:
        falsified()
    notes = "\n".join(caught.value.__notes__)
    line = "leakcheck stress --target './my box.toml' --submission python/spin --concurrency 2 --seed 7"
    assert f"replay: {line}" in notes
    assert "parse_spec('python/spin')" in notes


@given(mixes())
def test_the_specs_of_a_replay_line_is_the_mix(mix: list[Spec]) -> None:
    specs = replay_line("bwrap", mix).partition("--submission ")[2].partition(" --concurrency")[0].strip("'")
    assert parse_specs(specs) == mix


@given(submissions(["c"], statuses=("TLE",), time_limits=("wall", "cpu"), shortest_wall=1))
def test_what_is_to_run_out_of_time_has_little_of_it(one: Spec) -> None:
    assert min(one.limits.wall, one.limits.cpu) in (1, 2)
    assert parse_spec(one.word) == one


@given(limits(Limits(memory=300 << 20)))
def test_limits_leave_room(drawn: Limits) -> None:
    assert drawn.wall >= 60
    assert drawn.cpu >= 10
    assert drawn.memory >= 256 << 20


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="no submission in python ends in IE"):
        find(submissions(["python"], statuses=("IE",)), lambda _: True, settings=QUICK)


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['hypothesis'] = None; import leakcheck.strategies"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "leakcheck.strategies needs Hypothesis: pip install 'sandbox-leakcheck[strategies]'" in done.stderr
