"""Whose residue it is where several submissions of a round can have left it: each is run once more, alone."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leakcheck.campaigns.ground import Ground, Left, Run
from leakcheck.campaigns.likeness import count_like, grouped, same
from leakcheck.campaigns.source import compiled, warm_up
from leakcheck.campaigns.stages import Stop
from leakcheck.errors import CompileError, NativeError, TargetError, UsageError
from leakcheck.submissions import parse_plan
from leakcheck.targets import Target

if TYPE_CHECKING:
    from leakcheck.report import Leak

__all__ = ["narrow"]

_MOST = 64


def narrow(
    target: Target,
    left: Sequence[Left],
    plans: Mapping[int, str],
    hung: frozenset[int],
    *,
    settle: float,
    needed: Sequence[Path],
    say: Callable[[str], None],
    stop: Stop,
) -> None:
    """Narrow down `runs` of what can be of several submissions, to those that leave the like when run alone.

    `plans` gives each submission's word. One of a language and a behaviour stands for all such. What none of them
    leaves when alone stays as it is: it takes several at once, or chance. Those in `hung` did not end: they are not
    tried.
    """
    unsure = [one for one in left if one.gone is None and len(one.runs) > 1 and not one.late]
    words: dict[str, str] = {}
    for run in (run for one in unsure for run in one.runs if run not in hung):
        words.setdefault(_what(plans[run]), plans[run])
    if not unsure or stop():
        return
    say(f"finding out who left what: {min(len(words), _MOST)} submissions, one by one")
    leaves: dict[str, list[Leak]] = {}
    # What could not be looked at so is only known less surely.
    with contextlib.suppress(TargetError, UsageError, CompileError, NativeError, OSError):
        left_to_try = list(words.items())[:_MOST]
        while left_to_try and not stop():
            with Ground(target, 1, settle=settle, needed=needed, late=lambda *_: None) as ground:
                left_to_try = _leave_alone(ground, left_to_try, leaves, stop)
    for one in unsure:
        guilty = [run for run in one.runs if count_like(one.leak, leaves.get(_what(plans[run]), []))]
        if guilty:
            one.runs, one.tied = guilty, "replay"
        elif hung.intersection(one.runs) and all(_what(plans[run]) in leaves for run in one.runs if run not in hung):
            # None of the others leaves it.
            one.runs, one.tied, one.late = sorted(hung.intersection(one.runs)), "replay", True
    for alike in grouped(unsure, lambda one, other: one.round == other.round and same(one.leak, other.leak)):
        runs = {run for one in alike for run in one.runs}
        # As many as they leave when alone, all together.
        expected = sum(count_like(alike[0].leak, leaves.get(_what(plans[run]), [])) for run in runs)
        # What lives on in ever new processes is told as one, however many there are of it.
        all_of_it = len(alike) == expected or alike[0].leak.class_ == "respawning"
        if all_of_it and all(one.tied == "replay" for one in alike):
            for one in alike:
                one.runs, one.each = sorted(runs), True


def _leave_alone(
    ground: Ground, words: Sequence[tuple[str, str]], leaves: dict[str, list["Leak"]], stop: Stop
) -> list[tuple[str, str]]:
    """Run `words` alone, one after the other, until one leaves something; note what, and return the rest."""
    stages = ground.stages[0]
    if wrong := stages.again(warm_up()):
        raise TargetError(wrong)
    ground.place.begin()
    for number, (what, word) in enumerate(words):
        if stop():
            return []
        stages.renew()
        with contextlib.suppress(TargetError):
            submission = compiled(parse_plan(word))
            stages.outcome(stages.prepare(submission), submission)
        ground.look(number, [Run(number, 0)])
        if not stages.late:
            leaves[what] = [one.leak for one in ground.left.values()]
        if ground.left or stages.late:
            # What is still alive may leave more: that would be put down to the next one.
            return list(words[number + 1 :])
    return []


def _what(plan: str) -> str:
    return plan.partition("@")[0]
