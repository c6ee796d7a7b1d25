"""Another boot of the machine, as an arena shows it: another boot id, which no namespace has (random(4))."""

import os
import uuid
from pathlib import Path

from leakcheck.errors import UnavailableError
from leakcheck.targets import Target
from leakcheck.trials.session import Session

__all__ = ["MEMORY", "lasts", "show_this_boot", "shows_another_boot", "warm_up_after_boot"]

MEMORY = ("/run/", "/var/run/", "/dev/", "/proc/", "/sys/")
"""File systems in memory: the next boot has nothing of them."""

_ID = "/proc/sys/kernel/random/boot_id"
# The file has no name, and stays as long as its mount.
_BOOT = f'f=/run/leakcheck-boot-id; echo "$1" > $f && mount --bind -o ro $f {_ID}; rm -f $f; cat {_ID}'


def warm_up_after_boot(session: Session) -> str:
    """Make the warm-up run in an arena in which nothing has run, under another boot id; return what is wrong.

    It raises `UnavailableError` if the arena cannot show another one.

    Only root can cover the boot id; and in a user namespace of its own, no sandbox can mount a procfs beside one of
    which a part is covered (mount_namespaces(7)). These have the machine's own.
    """
    if os.geteuid() != 0:
        return session.again()
    new = str(uuid.uuid4())
    if (shown := session.output_of(["/bin/sh", "-c", _BOOT, "boot", new]).strip()) != new:
        raise UnavailableError(f"another boot id could not be shown in the arena: {shown}")
    if wrong := session.again():
        show_this_boot(session)
        # It may be wrong for another reason.
        wrong = session.again()
    return wrong


def shows_another_boot(session: Session) -> bool:
    """Return whether the arena shows another boot id than the machine's."""
    return session.output_of(["/bin/cat", _ID]).strip() != Path(_ID).read_text().strip()


def show_this_boot(session: Session) -> None:
    """Show the machine's own boot id again, if another one is shown."""
    if os.geteuid() == 0:
        session.output_of(["/bin/sh", "-c", f"umount {_ID} 2> /dev/null"])


def lasts(target: Target, path: str) -> bool:
    """Return whether the next boot has a file of the target's: one on a disk, or any if the adapter says so."""
    return target.adapter.damage.disk or not path.startswith(MEMORY)
