"""Hypothesis strategies for submissions and for fault plans.

Submissions shrink toward few, in Python, that print one line.

A test that draws from `mixes` and fails shows the smallest mix that fails. `noted` adds the command that runs it
again::

    @given(mixes())
    def test_my_sandbox(mix: list[Spec]) -> None:
        with noted("./mysandbox.toml", mix):
            ...

`plans` draws kills at the crash points of a sandbox, and faults of its clean-up; they shrink toward the fewest faults,
the first instant and the simplest kill.
"""

import contextlib
import shlex
from collections.abc import Collection, Generator, Hashable, Sequence
from typing import get_args

import msgspec

from injectors import Plan
from injectors.crash import VICTIMS, Sent, Victim, When, crash_plan
from injectors.errnos import USUAL
from injectors.syscalls import WATCHED, Fault, Mode, fault_plan
from leakcheck.errors import UsageError
from leakcheck.submissions import BEHAVIOURS, LANGUAGES, Behaviour, Limits, Spec, Status, found_languages, spec
from leakcheck.targets import Target
from leakcheck.trials.crash_points import Recorded, is_step, record_twice
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.runner import never
from leakcheck.trials.session import NEXT

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "leakcheck.strategies needs Hypothesis: pip install 'sandbox-leakcheck[strategies]', or pip install hypothesis"
    ) from error

__all__ = ["languages", "limits", "mixes", "noted", "plans", "replay_line", "submissions"]

_MIB = 1 << 20
_USUAL: tuple[Status, ...] = ("OK", "TLE", "RE")


def languages() -> st.SearchStrategy[str]:
    """Return a strategy for the names of installed languages; raise `UsageError` if there is none.

    Python is the simplest.
    """
    if not (found := found_languages()):
        raise UsageError(f"no language is installed: none of {', '.join(LANGUAGES)}")
    return st.sampled_from(found)


def limits(usual: Limits | None = None) -> st.SearchStrategy[Limits]:
    """Return a strategy for limits under which every language starts and no OK submission is killed.

    It shrinks toward `usual`, by default `DEFAULT_LIMITS`.
    """
    usual = usual or Limits()

    def whole(name: str, least: int, most: int, unit: int = 1) -> st.SearchStrategy[int]:
        return st.just(getattr(usual, name)) | st.integers(least, most).map(lambda count: count * unit)

    drawn = st.builds(
        Limits,
        wall=whole("wall", 60, 300).map(float),
        cpu=whole("cpu", 10, 60).map(float),
        memory=whole("memory", 256, 512, _MIB),
        processes=whole("processes", 64, 256),
        file_size=whole("file_size", 1, 64, _MIB),
        output=whole("output", 1, 64, _MIB),
    )
    # The usual limits first: with fewer choices to remove, mixes shrink further.
    return st.just(usual) | drawn


@st.composite
def submissions(
    draw: st.DrawFn,
    only: Sequence[str] | None = None,
    *,
    statuses: Collection[Status] = _USUAL,
    time_limits: Collection[str] = ("wall",),
    shortest_wall: float = 0.1,
    hostile: bool = False,
    without: Collection[str] = (),
) -> Spec:
    """Return a strategy for submissions of known status in `only`, by default all installed languages.

    The first language is the simplest. `statuses` are those to draw from; the other arguments are those of `sample`.

    Raises:
        UsageError: no submission matches the arguments.
    """
    language = draw(languages() if only is None else st.sampled_from(list(only)))
    fitting = [
        one
        for one in BEHAVIOURS.values()
        if language in one.languages and one.expect in statuses and one.fits(time_limits, without, hostile=hostile)
    ]
    if not fitting:
        raise UsageError(f"no submission in {language} ends in {' or '.join(sorted(statuses))}")
    behaviour = draw(st.sampled_from(fitting))
    usual = spec(language, behaviour.name).limits
    drawn = draw(limits(usual))
    if behaviour.ends_by:
        return Spec(language, behaviour.name, _ended(draw, behaviour, drawn, time_limits, shortest_wall))
    if behaviour.expect in ("MLE", "OLE"):
        # The limit that ends it stays unchanged.
        keep = {name: getattr(usual, name) for name in ("memory", "output", "file_size")}
        return spec(language, behaviour.name, wall=drawn.wall, cpu=drawn.cpu, processes=drawn.processes, **keep)
    return Spec(language, behaviour.name, drawn)


def _ended(
    draw: st.DrawFn, behaviour: Behaviour, drawn: Limits, time_limits: Collection[str], shortest: float
) -> Limits:
    by = draw(st.sampled_from([name for name in behaviour.ends_by if name in time_limits]))
    seconds: st.SearchStrategy[float]
    if shortest >= 1:
        seconds = st.sampled_from([float(int(shortest)), float(int(shortest) + 1)])
    else:
        # One second is the simplest.
        seconds = st.integers(0, 8).map(lambda tenths: max(shortest, round(1 - tenths / 10, 1)))
    return msgspec.structs.replace(drawn, **{"wall": max(60.0, drawn.wall), by: draw(seconds)})


def mixes(
    of: st.SearchStrategy[Spec] | None = None, *, smallest: int = 1, largest: int = 8
) -> st.SearchStrategy[list[Spec]]:
    """Return a strategy for lists of `smallest` to `largest` submissions of `of`, by default `submissions`."""
    return st.lists(submissions() if of is None else of, min_size=smallest, max_size=largest)


def plans(
    target: Target,
    *,
    victims: Sequence[Victim] = VICTIMS,
    signals: Sequence[Sent] = ("SIGKILL",),
    every: bool = False,
    faults: int = 0,
) -> st.SearchStrategy[Plan]:
    """Return a strategy for kills at the crash points of a run of `target`, and of the recovery of a crashed one.

    With `faults`, a plan has up to so many calls of a clean-up that fail, and then perhaps a kill: `faults=2` draws
    pairs. It shrinks toward one fault that happens once, and no kill.

    The points are recorded once, when the first plan is drawn; that needs root. With `every`, writes and messages are
    points, too. It shrinks toward early points, before their call, and the first of `victims` and of `signals`.

    Raises:
        TargetError: the target cannot be traced, or its runs are not right.
    """

    def recorded() -> st.SearchStrategy[Plan]:
        runs = [(NEXT, False), *([(SLEEPING, True)] if target.adapter.recover else [])]
        points = [
            one
            for submission, recovery in runs
            for one in record_twice(
                target, submission, recovery=recovery, stop=never, every=every, watched=faults > 0
            ).points
        ]
        kills = [one for one in points if one.point.operation not in WATCHED]
        return _faulty(points, kills, faults, victims) if faults else _kills(kills, victims, signals)

    return st.deferred(recorded)


@st.composite
def _kills(draw: st.DrawFn, points: Sequence[Recorded], victims: Sequence[Victim], signals: Sequence[Sent]) -> Plan:
    # Each plan draws as often: one that draws less often would count as simpler.
    one, when = draw(st.sampled_from(points)), draw(st.sampled_from(get_args(When)))
    quiesced, victim, sent = draw(st.booleans()), draw(st.sampled_from(victims)), draw(st.sampled_from(signals))
    return crash_plan(
        one.point,
        when if one.after else "before",
        quiesced=quiesced,
        notified=one.notified,
        victim=victim,
        ending="sleeping" if one.point.stage == "recover" else "normal",
        sent="SIGKILL" if victim == "freeze" else sent,
    )


@st.composite
def _faulty(
    draw: st.DrawFn, points: Sequence[Recorded], kills: Sequence[Recorded], most: int, victims: Sequence[Victim]
) -> Plan:
    def fault(one: Recorded) -> st.SearchStrategy[Fault]:
        operation = one.point.operation
        mode: Mode = "after" if operation == "close" else "fail"
        return st.builds(Fault, st.just(one.point), st.just(mode), st.booleans(), st.sampled_from(USUAL[operation]))

    steps = [one for one in points if is_step(one)]
    if not steps:
        raise UsageError("its clean-up makes none of the calls that could fail")
    drawn = draw(st.lists(st.sampled_from(steps).flatmap(fault), min_size=1, max_size=most, unique_by=_call))
    # Of two at one call, the first happens.
    faults = [one for at, one in enumerate(drawn) if not any(first.covers(one) for first in drawn[:at])]
    # What is recovered has crashed, unless its run has a fault of its own: with a payload that sleeps.
    ending = "sleeping" if all(one.point.stage == "recover" for one in faults) else "normal"
    notified = any(one.notified for one in steps)
    kill = draw(st.none() | st.sampled_from([one for one in kills if one.point.stage != "prepare"]))
    if kill is None:
        return fault_plan(faults, notified=notified, ending=ending)
    victim = draw(st.sampled_from(victims))
    ending = ending if kill.point.stage == "recover" else "normal"
    return fault_plan(faults, crash_plan(kill.point, "before", notified=notified, victim=victim, ending=ending))


def _call(fault: Fault) -> Hashable:
    return fault.point


def replay_line(target: str, mix: Sequence[Spec], *, concurrency: int = 1, seed: int = 0) -> str:
    """Return the command that runs `mix` with `target`, `concurrency` submissions at a time."""
    specs = " ".join(one.word for one in mix)
    words = ["leakcheck", "stress", "--target", target, "--submission", specs, "--concurrency", str(concurrency)]
    return shlex.join([*words, "--seed", str(seed)])


@contextlib.contextmanager
def noted(target: str, mix: Sequence[Spec], *, concurrency: int = 1, seed: int = 0) -> Generator[None, None, None]:
    """Have Hypothesis print the replay line with the failing example of the code inside."""
    try:
        yield
    except Exception:
        hypothesis.note(f"replay: {replay_line(target, mix, concurrency=concurrency, seed=seed)}")
        raise
