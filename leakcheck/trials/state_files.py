"""The state files of a target: what they contain while its payload runs, and what it does about a damaged one."""

import os
from collections.abc import Iterator
from pathlib import Path

from injectors.crash import crash_once_payload_runs
from injectors.damages import Found
from injectors.state import MOST_BYTES
from leakcheck.errors import TargetError, reason
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.host import Host
from leakcheck.trials.payload import SLEEPING, state_files
from leakcheck.trials.rootfs import find, opened, read_file
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session


def found_at(host: Host, path: Path, *, directories: bool = False) -> Found:
    """Return what stands at `path`, of which links are followed; raise `OSError` if it is nothing to be damaged.

    With `directories`, a directory or a link that leads nowhere may be.
    """
    try:
        content = read_file(host.root, path, MOST_BYTES + 1)
    except FileNotFoundError:
        if directories:
            return "link"
        raise
    except OSError:
        if directories:
            with opened(host.root, path, os.O_PATH | os.O_DIRECTORY):
                return "directory"
        raise
    return "large" if len(content) > MOST_BYTES else content


def described(found: Found) -> str:
    """Return in words what was found."""
    if isinstance(found, bytes):
        return f"{len(found)} bytes"
    return f"more than {MOST_BYTES >> 20} MiB: only its name, rights and owner are damaged"


def record_state_files(target: Target, stop: Stop) -> dict[str, Found]:
    """Return what each state file contained when its supervisor was killed, by its name in the adapter.

    If a name stands for several files, it is the first. It raises `TargetError` if the warm-up run is not right, or
    none of the files is there.
    """
    with open_host(target, 0, live=False) as host:
        session = Session(target, host, stop=stop)
        if wrong := session.again():
            raise TargetError(f"{target.name}: warm-up run: {wrong}")
        session.renew()
        with session.tracing(lambda stage, _, payload: crash_once_payload_runs(payload) if stage == "launch" else None):
            session.run_crashed(session.prepare(SLEEPING), SLEEPING)
        found = {declared: state_files(session, declared) for declared in target.adapter.state_files}
        contents: dict[str, Found] = {}
        wrong = ""
        for declared, paths in found.items():
            if not paths:
                continue
            try:
                contents[declared] = found_at(host, Path(paths[0]))
            except OSError as error:
                wrong = f"{paths[0]}: {reason(error)}"
    if not contents:
        if wrong:
            raise TargetError(f"{target.name}: no state file can be read: {wrong}")
        names = " and no ".join(target.adapter.state_files)
        hint = f"mend state_files in {target.path}"
        raise TargetError(f"{target.name}: while its payload runs there is no {names}; {hint}")
    return contents


def keeps_one(session: Session) -> bool | None:
    """Return whether there is a file where the target keeps those that it does not trust; None if nobody can know."""
    places = session.target.adapter.damage.keeps
    # Elsewhere, "*" may stand for several directories.
    if not places or any("*" in place.rpartition("/")[0] for place in places):
        return None
    return any(True for place in places for _ in find(session.host.root, session.filled(place)))


def spreads(session: Session) -> Iterator[str]:
    """Run the next submission in another box, and the health check; yield what is wrong."""
    other = Session(session.target, session.host, session.box.number + 1, work=session.box.work, stop=session.stop)
    for what, wrong in (("another box", other.again()), ("at the end", session.health())):
        if wrong:
            yield f"{what}: {wrong}"
