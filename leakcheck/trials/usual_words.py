"""Which of the words that an adapter declares for a lack stand in the output of each run, and so tell of none."""

import contextlib

from leakcheck.errors import TargetError
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.exhausted import heard, status_text
from leakcheck.trials.output import ends, memory
from leakcheck.trials.payload import COUNTING
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session

__all__ = ["usual_words"]


def usual_words(target: Target, stop: Stop) -> frozenset[str]:
    """Return the words that stand in the output or in the status file of a run that lacks nothing."""
    if not target.adapter.exhaustion.words:
        return frozenset()
    with open_host(target, 0, live=False) as host, memory() as output:
        session = Session(target, host, stop=stop)
        # What is wrong with such a run is the trials' matter: each begins with one.
        with contextlib.suppress(TargetError):
            argv = session.prepare(COUNTING)
            session.wait(session.start(argv, output, stage="launch", payload=COUNTING.program), COUNTING.wall, argv[0])
            session.finish()
        return frozenset(heard(session, f"{ends(output)}\n{status_text(session)}"))
