"""Where a target's programs are looked up."""

import os
import shutil
from pathlib import Path

__all__ = ["find", "places"]

_CHECKOUT = Path(__file__).resolve().parents[2]


def places() -> list[str]:
    """Return the directories that are searched, in order.

    ``.targets/bin`` of the checkout (``make targets`` fills it), ``$LEAKCHECK_TARGETS/bin``, ``$PATH``, and the
    directories of system programs, which an ordinary user's ``$PATH`` lacks in Debian.
    """
    own = [str(_CHECKOUT / ".targets" / "bin")]
    if given := os.environ.get("LEAKCHECK_TARGETS"):
        own.append(str(Path(given).absolute() / "bin"))
    inherited = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    return list(dict.fromkeys([*own, *inherited, "/usr/sbin", "/sbin"]))


def find(name: str) -> str | None:
    """Return the path of program `name`, or None."""
    return shutil.which(name, path=os.pathsep.join(places()))
