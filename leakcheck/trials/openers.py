"""Who opens the program of the first contender while its box is prepared: a copy of it may be executed later."""

import contextlib
import os
from collections.abc import Generator

from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.contender_program import HOLDER, PROGRAMS
from leakcheck.trials.gate import Gate
from leakcheck.trials.payload import install
from leakcheck.trials.rootfs import opened
from leakcheck.trials.session import Session

__all__ = ["noting_openers"]


@contextlib.contextmanager
def noting_openers(session: Session) -> Generator[None, None, None]:
    """Note in `session` the processes that open the program meanwhile, apart from this one."""
    session.openers = set()
    with contextlib.ExitStack() as stack:
        gate = None
        # The witness of the contest says why there is none.
        if isinstance(session.host, ArenaHost):
            with contextlib.suppress(OSError):
                session.host.make_directory(PROGRAMS)
                install(session.host, HOLDER)
                directory = stack.enter_context(opened(session.host.root, PROGRAMS, os.O_PATH | os.O_DIRECTORY))
                gate = stack.enter_context(Gate(directory, holds=False))
        yield
        while gate is not None and (starts := gate.starts(0)):
            session.openers |= {start.pid for start in starts} - {os.getpid()}
            gate.admit(starts)
            for start in starts:
                if start.pidfd >= 0:
                    os.close(start.pidfd)
