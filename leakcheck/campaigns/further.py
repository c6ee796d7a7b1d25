"""Trials that a sweep adds after those of its plans."""

from collections.abc import Sequence
from typing import Any

import msgspec

from leakcheck.campaigns.campaign import Made
from leakcheck.trials.case import Case
from leakcheck.trials.trial import Trial


def later(case: Case) -> Case:
    """Return a case one run later."""
    return msgspec.structs.replace(case, further=case.further + 1)


def extend(made: Made[Any, Trial], cases: Sequence[Case]) -> list[Trial]:
    """Make further trials, and return those that reached something: only these count.

    Those that an interrupt leaves out are wanted all the same: without them, the campaign is not complete.
    """
    count, found = 0, list[Trial]()
    for trial in made.executor.run(lambda: iter(cases)):
        count += 1
        if trial.outcome != "not-reached":
            found.append(trial)
            made.trials.append(trial)
            made.record(trial)
    made.wanted = None if made.wanted is None else made.wanted + len(found) + len(cases) - count
    return found
