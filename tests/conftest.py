"""What holds for every test."""

import signal
from collections.abc import Generator

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Generator[None, None, None]:
    """Let the programs that tests start be interrupted, even where this suite is run in a shell's background (``&``).

    There SIGINT is ignored, and whatever is started inherits that (execve(2)).
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
