"""What every injector offers."""

from typing import Protocol, Self

__all__ = ["Injector"]


class Injector(Protocol):
    """Performs one fault plan, once: armed before the target starts, disarmed after it ended.

    A plan that did not fire tested nothing; a trial whose injector has `fired` false is *not reached*, never a pass.
    """

    @property
    def plan(self) -> str:
        """The fault plan in one line, such as ``0/umount2#1:EBUSY`` or ``disk:full@16M``; `parse` reads it back."""
        ...

    @property
    def fired(self) -> bool:
        """Whether the fault has happened since `arm`."""
        ...

    @classmethod
    def parse(cls, plan: str) -> Self:
        """Return the injector that performs `plan`; raise `ValueError` saying what in it is wrong."""
        ...

    def arm(self, pid: int) -> None:
        """Make the fault happen to the target whose supervisor is `pid` (> 1) and has not executed anything of its own.

        Raises:
            OSError: the machine refuses what the fault needs.
        """
        ...

    def disarm(self) -> None:
        """Undo everything that `arm` changed; harmless when nothing is armed, and called even after `arm` failed."""
        ...
