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
    """Return the words that stand in the output or in the status file of one of two runs that lack nothing."""
    if not target.adapter.exhaustion.words:
        return frozenset()
    words: set[str] = set()
    with open_host(target, 0, live=False) as host:
        session = Session(target, host, stop=stop)
        # A trial's run is the second one in its box, and may say more than the first.
        for _ in range(2):
            words.update(_words(session))
            session.renew()
    return frozenset(words)


def _words(session: Session) -> list[str]:
    with memory() as output:
        # What is wrong with such a run is the trials' matter: each begins with one.
        with contextlib.suppress(TargetError):
            argv = session.prepare(COUNTING)
            session.wait(session.start(argv, output, stage="launch", payload=COUNTING.program), COUNTING.wall, argv[0])
            session.finish()
        return heard(session, f"{ends(output)}\n{status_text(session)}")
