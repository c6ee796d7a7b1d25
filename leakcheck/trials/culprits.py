"""Finds which submission left residue if several of a round are possible: each one runs again, alone."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from leakcheck.errors import CompileError, NativeError, TargetError, UsageError
from leakcheck.report import Leak
from leakcheck.submissions import parse_spec
from leakcheck.targets import Target
from leakcheck.trials.attribution import Run, SharedRemnant
from leakcheck.trials.record import behaviour_of
from leakcheck.trials.runner import Stop
from leakcheck.trials.shared_arena import SharedArena, compiled, warm_up
from leakcheck.trials.similarity import count_similar, grouped, same

_MOST = 64


def isolate(
    target: Target,
    left: Sequence[SharedRemnant],
    specs: Mapping[int, str],
    hung: frozenset[int],
    *,
    settle: float,
    log: Callable[[str], None],
    stop: Stop,
) -> None:
    """Reduce the `runs` of residue that several submissions can have left to those that leave the same when run alone.

    `specs` has each submission's spec. One submission per language and behaviour represents all others of both. Residue
    that none of them leaves alone stays as it is: it needs several at once, or chance. Submissions in `hung` did not
    end and are not tried.
    """
    unsure = [one for one in left if one.gone is None and len(one.runs) > 1 and not one.late]
    sure = [one for one in left if one.gone is None and len(one.runs) == 1 and not one.late]
    words: dict[str, str] = {}
    for run in (run for one in unsure for run in one.runs if run not in hung):
        words.setdefault(behaviour_of(specs[run]), specs[run])
    if not unsure or stop():
        return
    log(f"attributing residue: {min(len(words), _MOST)} submissions, one by one")
    leaves: dict[str, list[Leak]] = {}
    # If this check fails, the attribution is only less certain.
    with contextlib.suppress(TargetError, UsageError, CompileError, NativeError, OSError):
        left_to_try = list(words.items())[:_MOST]
        while left_to_try and not stop():
            with SharedArena(target, 1, settle=settle, late=lambda *_: None) as arena:
                left_to_try = _leave_alone(arena, left_to_try, leaves, stop)
    for one in unsure:
        late = hung.intersection(one.runs)
        guilty = [run for run in one.runs if count_similar(one.leak, leaves.get(behaviour_of(specs[run]), []))]
        if guilty:
            one.runs, one.tied = guilty, "replay"
        elif late and all(behaviour_of(specs[run]) in leaves for run in one.runs if run not in late):
            # None of the other submissions leaves it.
            one.runs, one.tied, one.late = sorted(late), "replay", True
    for alike in grouped(unsure, lambda one, other: one.round == other.round and same(one.leak, other.leak)):
        first = alike[0]
        both = {run for one in alike for run in one.runs}
        alone = {run: count_similar(first.leak, leaves.get(behaviour_of(specs[run]), [])) for run in both}
        # What certainly is of one submission is none of those that are looked for here.
        certain = Counter(one.runs[0] for one in sure if one.round == first.round and same(one.leak, first.leak))
        runs = {run for run in both if certain[run] < alone[run]}
        # As many as all of them leave when run alone.
        expected = sum(alone[run] - certain[run] for run in runs)
        # A chain of short-lived processes is reported as one, whatever their number.
        all_of_it = len(alike) == expected or first.leak.class_ == "respawning"
        if all_of_it and all(one.tied == "replay" for one in alike):
            for one in alike:
                one.runs, one.each = sorted(runs), True


def _leave_alone(
    arena: SharedArena, words: Sequence[tuple[str, str]], leaves: dict[str, list[Leak]], stop: Stop
) -> list[tuple[str, str]]:
    """Run `words` alone, one after the other, until one leaves something; record it, and return the rest."""
    session = arena.sessions[0]
    if wrong := session.again(warm_up()):
        raise TargetError(wrong)
    arena.host.begin()
    for number, (what, word) in enumerate(words):
        if stop():
            return []
        session.renew()
        with contextlib.suppress(TargetError):
            submission = compiled(parse_spec(word))
            session.submit(session.prepare(submission), submission)
        arena.observe(number, [Run(number, 0)])
        if not session.late:
            leaves[what] = [one.leak for one in arena.left.values()]
        if arena.left or session.late:
            # A process that is still alive may leave more, which would be attributed to the next submission.
            return list(words[number + 1 :])
    return []
