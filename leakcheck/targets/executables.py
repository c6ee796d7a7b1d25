"""Finds a target's programs."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from leakcheck import _bin

# Directories that an arena replaces; a bind of one of them would hide the arena's.
_FRESH = ("/tmp", "/run", "/var/tmp", "/dev", "/dev/shm")  # noqa: S108 - names to compare with
_BELOW = tuple(f"{fresh}/" for fresh in _FRESH)
# The helper programs, including refbox.
_PACKAGED = Path(_bin.__file__).parent
_CHECKOUT = Path(__file__).resolve().parents[2]


def find(name: str) -> str | None:
    """Return the path of program `name`, or None.

    An absolute path is that program. Any other name is searched in ``$LEAKCHECK_TARGETS/bin``, ``.targets/bin`` of the
    checkout (``make targets`` fills it), ``$PATH``, the directories of system programs, which an ordinary user's
    ``$PATH`` lacks in Debian, and leakcheck's own helpers.
    """
    own = [str(directory / "bin") for directory in _own()]
    inherited = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    return shutil.which(name, path=os.pathsep.join([*own, *inherited, "/usr/sbin", "/sbin", str(_PACKAGED)]))


def _own() -> list[Path]:
    """Return the installation directories of sandboxes; their programs also need the directories beside `bin`."""
    given = os.environ.get("LEAKCHECK_TARGETS")
    return [*([Path(given).absolute()] if given else []), _CHECKOUT / ".targets"]


def binds(needed: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str, bool]]:
    """Return what an arena must show, read only, so that the files and directories `needed` exist as on the host.

    Only paths below a directory that the arena replaces need a bind. A file's parent is bound, since the file may need
    its siblings. If the parent is the replaced directory itself, only the file is bound.
    """
    shown = set()
    for path in (str(Path(one).absolute()) for one in needed):
        # A link in $PATH may lead into a replaced directory, or out of it. Each trial asks, and `Path` is slower.
        for name in (path, os.path.realpath(path)):
            if name.startswith(_BELOW):
                one = Path(name)
                wanted = [directory for directory in _own() if one.is_relative_to(directory)]
                wanted.append(one if one.is_dir() else one.parent)
                shown.add(next((place for place in wanted if str(place) not in _FRESH), one))
    return [(str(one), str(one), True) for one in sorted(shown)]
