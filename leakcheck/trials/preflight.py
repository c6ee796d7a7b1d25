"""Measurements before the trials: whether the isolation is on, how long a run takes, what the very first run leaves."""

import contextlib
import os
import stat
import statistics
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from leakcheck.errors import StoppedError, TargetError
from leakcheck.targets import Target
from leakcheck.targets.target import PROBE_RAN
from leakcheck.trials import open_host
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.similarity import count_similar

FIRST = "first run"
"""The stage of a first run's residue."""


def probe(target: Target, *, live: bool, stop: Stop) -> list[str]:
    """Return the parts of the target's isolation that are off where trials run; empty if none is."""
    if target.adapter.probe.none:
        return []
    with _session(target, live, stop) as session:
        return isolation_gaps(session)


def isolation_gaps(session: Session) -> list[str]:
    """Return the parts of the target's isolation that are off in this host, with the probe's last output."""
    probed = run_probe(session)
    return [*probed.gaps, probed.inside[-300:].strip()] if probed.gaps else []


class Probed(msgspec.Struct, frozen=True):
    """What the probe prints in the target, and outside of it; and the parts of the isolation that are off."""

    inside: str
    outside: str
    gaps: list[str]


def run_probe(session: Session) -> Probed:
    """Run the probe; raise a `TargetError` that says why if it did not finish, or if its output does not come back."""
    marker = session.host.marker
    session.host.write(marker, b"")
    submission = session.target.probe(marker)
    argv = session.prepare(submission)
    outside = session.output_of(submission.program)
    inside, code, words = session.payload_output(argv, submission)
    if PROBE_RAN not in inside.splitlines():
        why = "the payload did not start, or did not end"
        if code == 0:
            why = f"what the payload prints does not come back: {_where(session)}"
        raise TargetError(f"{session.target.name}: {why}; the launch exited with {code}: {words}{_powerless(session)}")
    return Probed(inside, outside, session.target.isolation_gaps(inside, outside))


def _powerless(session: Session) -> str:
    """Return what to do if the target needs another user's rights: an arena of an ordinary user gives it none."""
    if os.geteuid() == 0 or not isinstance(session.host, ArenaHost):
        return ""
    others = [path for path in session.target.programs() if _is_set_user_id(Path(path))]
    what = "is set-user-ID, which has no effect in the arena of an ordinary user"
    return f"; {others[0]} {what}: run leakcheck with sudo, or a campaign with --host" if others else ""


def _is_set_user_id(program: Path) -> bool:
    try:
        return bool(program.stat().st_mode & stat.S_ISUID)
    except OSError:
        # It was removed meanwhile.
        return False


def _where(session: Session) -> str:
    if (path := session.target.output_file(session.box)) is not None:
        return f"{path}, which the adapter names as output, lacks it"
    ways = "let the launch pass it on to its stdout or stderr, or name the file that has it"
    return f'{ways}, such as output = "{{work}}/out"'


def run_length(target: Target, *, live: bool, stop: Stop, runs: int = 5) -> float:
    """Return the median length of a normal run in ms, without the first one; raise `TargetError` if one is wrong."""
    lengths: list[float] = []
    with _session(target, live, stop) as session:
        for _ in range(runs + 1):
            argv = session.prepare(NEXT)
            began = time.monotonic()
            if wrong := session.run(argv, NEXT):
                raise TargetError(f"{target.name}: {wrong}")
            lengths.append((time.monotonic() - began) * 1000)
    return statistics.median(lengths[1:])


def first_run(target: Target, *, live: bool, stop: Stop, settle: float) -> list[Remnant]:
    """Return what the very first run on a host leaves permanently, which a trial's warm-up hides.

    It is bounded if a second and a third run leave no more of it, growing if they do. Files of the host that it, or the
    preparation before it, changes or removes are damaged.
    """
    with _session(target, live, stop, settle) as session:
        argv = session.prepare(NEXT)
        session.host.begin()
        left = [Remnant("file", "damaged", label, stage=FIRST, place=label) for label in session.host.damaged_before()]
        session.run(argv, NEXT)
        first = session.host.observe()
        if not first.leaks:
            return left
        # Preparing the box again replaces its own files, so compare the second run with the third.
        later = []
        for _ in range(2):
            session.renew()
            session.again()
            later.append(session.host.observe().leaks)
        for leak in first.leaks:
            more = count_similar(leak, later[1]) > count_similar(leak, later[0])
            class_ = leak.class_ if leak.class_ == "damaged" else "growing" if more else "bounded"
            left.append(Remnant.of(leak, class_, stage=FIRST))
    return left


@contextlib.contextmanager
def _session(target: Target, live: bool, stop: Stop, settle: float = 0) -> Generator[Session, None, None]:
    with open_host(target, settle, live=live) as host:
        yield Session(target, host, stop=stop)
    # `Session.again` treats it as a failed run.
    if stop():
        raise StoppedError(f"{target.name}: interrupted before the first trial")
