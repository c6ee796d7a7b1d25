"""How many trials run at a time: one that only waits for teardown lets another one run."""

import threading
from collections.abc import Callable


class Turns:
    """Turns for `count` trials; `lent` is called when a trial lends its own."""

    def __init__(self, count: int, lent: Callable[[], object]) -> None:
        self._changed = threading.Condition()
        self._free = count
        self.returning = 0
        self.lent = lent

    def take(self) -> bool:
        """Take a turn if one is free that no trial wants back."""
        with self._changed:
            if self._free <= self.returning:
                return False
            self._free -= 1
            return True

    def give(self) -> None:
        """Give a turn back."""
        with self._changed:
            self._free += 1
            self._changed.notify()

    def wait(self) -> None:
        """Wait for a turn, and take it before any new trial does."""
        with self._changed:
            self.returning += 1
            self._changed.wait_for(lambda: self._free > 0)
            self.returning -= 1
            self._free -= 1


class Turn:
    """The turn of one trial, which it has at first."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.is_lent = False

    def lend(self) -> None:
        """Let another trial run meanwhile, unless one does already."""
        if not self.is_lent:
            self.is_lent = True
            self._turns.give()
            self._turns.lent()

    def end(self) -> None:
        """Give it back for good, unless it is lent."""
        if not self.is_lent:
            self.is_lent = True
            self._turns.give()

    def take_back(self) -> None:
        """Wait for a turn if it was lent."""
        if self.is_lent:
            self._turns.wait()
            self.is_lent = False
