"""Whose residue it is where several submissions of a round can have left it: each is run once more, alone."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leakcheck.campaigns.ground import Ground, Left, Run
from leakcheck.campaigns.likeness import count_like
from leakcheck.campaigns.source import compiled, warm_up
from leakcheck.campaigns.stages import Stop
from leakcheck.errors import NativeError, UsageError
from leakcheck.submissions import CompileError, parse_plan
from leakcheck.supervise import TargetError
from leakcheck.targets import Target

if TYPE_CHECKING:
    from leakcheck.report import Leak

__all__ = ["narrow"]

_MOST = 64


def narrow(
    target: Target,
    left: Sequence[Left],
    plans: Mapping[int, str],
    *,
    settle: float,
    needed: Sequence[Path],
    say: Callable[[str], None],
    stop: Stop,
) -> None:
    """Narrow down `runs` of what can be of several submissions, to those that leave the like when run alone.

    `plans` gives each submission's word. One of a language and a behaviour stands for all such. What none of them
    leaves when alone stays as it is: it takes several at once, or chance.
    """
    unsure = [one for one in left if one.gone is None and len(one.runs) > 1]
    words: dict[str, str] = {}
    for one in unsure:
        for run in one.runs:
            words.setdefault(_what(plans[run]), plans[run])
    if not unsure or stop():
        return
    say(f"finding out who left what: {min(len(words), _MOST)} submissions, one by one")
    leaves: dict[str, list[Leak]] = defaultdict(list)
    # What could not be looked at so is only known less surely.
    with (
        contextlib.suppress(TargetError, UsageError, CompileError, NativeError, OSError),
        Ground(target, 1, settle=settle, needed=needed, late=lambda *_: None) as ground,
    ):
        stages = ground.stages[0]
        if stages.again(warm_up()):
            return
        ground.place.begin()
        for number, (what, word) in enumerate(list(words.items())[:_MOST]):
            if stop():
                break
            try:
                submission = compiled(parse_plan(word))
                stages.outcome(stages.prepare(submission), submission)
            except TargetError:
                continue
            known = ground.left.keys() | set()
            ground.look(number, [Run(number, 0)])
            leaves[what] = [one.leak for key, one in ground.left.items() if key not in known]
    for one in unsure:
        guilty = [run for run in one.runs if count_like(one.leak, leaves[_what(plans[run])])]
        if guilty:
            one.runs, one.tied = guilty, "replay"


def _what(plan: str) -> str:
    return plan.partition("@")[0]
