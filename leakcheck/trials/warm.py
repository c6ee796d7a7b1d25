"""The warm state of a target: what its first run on a host leaves, made once, and made again in each trial's arena.

A trial begins where a run has already been, because a first run leaves what no later one does. That run is the same in
every trial. If all that it leaves are files and cgroups, an arena can have them without it. A target that leaves more,
such as a daemon, a mount or a setting of the network, makes its warm-up run in each trial.
"""

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from leakcheck.errors import TargetError
from leakcheck.report import Leak
from leakcheck.targets import Box, Target
from leakcheck.trials.arena_host import ArenaHost
from leakcheck.trials.rootfs import opened
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import NEXT, Session
from leakcheck.trials.similarity import fixed, place_of

# Of files larger than this in sum, or more of them, a run makes its own faster.
_MOST_BYTES = 1 << 20
_MOST_FILES = 256
# Seconds; the end of the last process is waited for as long as it takes, up to eight times this.
_SETTLE = 0.1
_GETFLAGS = 0x80086601
_PROTECTED = 0x10 | 0x20
# Counters, and files that only take effect when written.
_VOLATILE = ("usage", "failcnt", "procs", "tasks", "pressure", "event_control", "peak", "reset", "reclaim", "kill")
_OWNERS = "owners"
# What no look at an arena shows: settings of its network, IPC and host name; and the last process id.
_SETTINGS = """type grep cksum >/dev/null || exit 1
cd /proc/sys && { grep -rs . net fs/mqueue kernel/hostname kernel/domainname kernel/msg* kernel/sem* kernel/shm*
for file in fib_trie route ipv6_route if_inet6 ip_tables_names ip6_tables_names arp; do cat /proc/net/$file; done 2>&1
} | cksum; cat kernel/ns_last_pid"""


class MadeFile(msgspec.Struct, frozen=True):
    """A directory, a regular file with its content, or a symbolic link with its target."""

    path: Path
    mode: int
    owner: tuple[int, int]
    times: tuple[int, int]
    content: bytes | None = None
    target: str | None = None


class MadeGroup(msgspec.Struct, frozen=True):
    """A cgroup by hierarchy and path below the arena's own, with the settings that a new one lacks."""

    hierarchy: str
    below: str
    settings: Mapping[str, str] = {}


class WarmState(msgspec.Struct, frozen=True):
    """The files and cgroups that a run in `box` left, and the last process id that it used."""

    box: Box
    last_pid: int
    files: list[MadeFile]
    groups: list[MadeGroup]

    def restore(self, session: Session) -> str:
        """Make it again in an arena in which nothing has run; return what is wrong."""
        host = session.host
        if not isinstance(host, ArenaHost):
            return "no arena"
        try:
            host.record_initial_state()
            _make_files(host.root, self.files)
            for group in self.groups:
                path = _path(host, group)
                path.mkdir()
                for name, value in group.settings.items():
                    (path / name).write_text(value)
        except OSError as error:
            return f"make what it leaves again: {error}"
        session.box = self.box
        return ""


class _RefusedError(Exception):
    """Why what a run leaves cannot be made again."""


def warm_state(target: Target, *, stop: Stop) -> tuple[WarmState | None, str]:
    """Return the state after a target's first run, or None and why each trial has to run it.

    The state is tried: where it was made again, a run must do and leave the same as where it was made first.
    """
    try:
        with ArenaHost(target, _SETTLE) as host:
            state = _first_run(host, target, stop)
            here = _next_run(host, target, state.box, stop)
        with ArenaHost(target, _SETTLE, last_pid=state.last_pid) as host:
            host.record_initial_state()
            _make_files(host.root, state.files)
            state = msgspec.structs.replace(state, groups=[_make_group(host, group) for group in state.groups])
            there = _next_run(host, target, state.box, stop)
        if here != there:
            raise _RefusedError(f"in another arena, a run does or leaves something else: {min(here ^ there)}")
    except (_RefusedError, TargetError, OSError) as error:
        return None, str(error)
    return state, ""


def _first_run(host: ArenaHost, target: Target, stop: Stop) -> WarmState:
    session = Session(target, host, stop=stop)
    before = _settings(session)
    host.begin()
    if wrong := session.again():
        raise _RefusedError(wrong)
    report = host.observe()
    after = _settings(session)
    if report.gaps or before[:-1] != after[:-1]:
        gaps = [f"{kind} cannot be seen in full" for kind in report.gaps]
        raise _RefusedError("; ".join(gaps) or "it changes settings of the network, of IPC or of the host name")
    if report.vanished:
        raise _RefusedError(f"it removes {report.vanished[0].label}")
    files, groups = [], []
    for leak in report.leaks:
        if leak.kind == "cgroup":
            groups.append(_group(host, leak))
        elif leak.kind == "file" and leak.class_ != "damaged" and not leak.replaces:
            files.append(_file(host.root, Path(place_of(leak))))
        else:
            raise _RefusedError(f"it leaves more than files and cgroups: {leak.label}")
    if len(files) > _MOST_FILES or sum(len(one.content or b"") for one in files) > _MOST_BYTES:
        raise _RefusedError("what it leaves is too large")
    by_depth = sorted(files, key=lambda one: one.path), sorted(groups, key=lambda one: one.below)
    return WarmState(session.box, int(after[-1]), *by_depth)


def _next_run(host: ArenaHost, target: Target, box: Box, stop: Stop) -> set[tuple[str, ...]]:
    """Run once more; return what is wrong with the run, and what it leaves."""
    session = Session(target, host, stop=stop)
    session.box = box
    session.renew()
    argv = session.prepare(NEXT)
    host.begin()
    wrong = session.run(argv, NEXT)
    report = host.observe()
    left = {(leak.kind, leak.class_, fixed(place_of(leak))) for leak in report.leaks}
    return left | {("coverage", kind, gap.reason) for kind, gap in report.gaps.items()} | {("status", wrong)}


def _settings(session: Session) -> list[str]:
    """Return checksum and length of what no look shows, and the last process id."""
    words = session.output_of(["/bin/sh", "-c", _SETTINGS]).split()
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise _RefusedError("the settings of its arena cannot be read")
    return words


def _file(root: int, path: Path) -> MadeFile:
    with opened(root, path.parent, os.O_PATH | os.O_DIRECTORY) as parent:
        st = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        made = MadeFile(path, st.st_mode, (st.st_uid, st.st_gid), (st.st_atime_ns, st.st_mtime_ns))
        if stat.S_ISLNK(st.st_mode):
            return msgspec.structs.replace(made, target=os.readlink(path.name, dir_fd=parent))
        is_file = stat.S_ISREG(st.st_mode) and st.st_nlink == 1 and st.st_size <= _MOST_BYTES
        if not (is_file or stat.S_ISDIR(st.st_mode)):
            raise _RefusedError(f"it leaves {path}, which is no small file, directory or symbolic link of its own")
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            (flags,) = struct.unpack("@l", fcntl.ioctl(file, _GETFLAGS, b"\0" * 8))
            if flags & _PROTECTED or any(_is_given(name) for name in os.listxattr(file)):
                raise _RefusedError(f"it leaves {path}, which has extended attributes or flags")
            return msgspec.structs.replace(made, content=os.read(file, st.st_size)) if is_file else made
        finally:
            os.close(file)


def _is_given(attribute: str) -> bool:
    return attribute == "security.capability" or not attribute.startswith("security.")


def _make_files(root: int, files: Sequence[MadeFile]) -> None:
    for one in files:
        with opened(root, one.path.parent, os.O_PATH | os.O_DIRECTORY) as parent:
            name = one.path.name
            if one.target is not None:
                os.symlink(one.target, name, dir_fd=parent)
            elif one.content is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
                    file.write(one.content)
            else:
                os.mkdir(name, 0o700, dir_fd=parent)
            os.chown(name, *one.owner, dir_fd=parent, follow_symlinks=False)
            if one.target is None:
                os.chmod(name, stat.S_IMODE(one.mode), dir_fd=parent)
    # Only now: what is made in a directory changes its times.
    for one in files:
        with opened(root, one.path.parent, os.O_PATH | os.O_DIRECTORY) as parent:
            os.utime(one.path.name, ns=one.times, dir_fd=parent, follow_symlinks=False)


def _group(host: ArenaHost, leak: Leak) -> MadeGroup:
    resource = leak.evidence["resource"]
    path, top = Path(resource["dir"]), host.cgroups.get(resource["hierarchy"])
    if top is None or not path.is_relative_to(top):
        raise _RefusedError(f"it leaves {leak.label}, which is not below the arena's")
    return MadeGroup(resource["hierarchy"], str(path.relative_to(top)), _settings_of(path))


def _make_group(host: ArenaHost, group: MadeGroup) -> MadeGroup:
    """Make it for the first time; return it with the settings that have to be written."""
    path = _path(host, group)
    path.mkdir()
    new = _settings_of(path)
    changed = {name: value for name, value in group.settings.items() if new.get(name) != value and name != _OWNERS}
    for name, value in changed.items():
        (path / name).write_text(value)
    if (now := _settings_of(path)) != group.settings:
        differs = next(name for name in group.settings if now.get(name) != group.settings[name])
        raise _RefusedError(f"it leaves the cgroup {group.below} with a {differs} that cannot be written")
    return msgspec.structs.replace(group, settings=changed)


def _path(host: ArenaHost, group: MadeGroup) -> Path:
    return Path(host.cgroups[group.hierarchy], group.below)


def _settings_of(path: Path) -> dict[str, str]:
    """Return the content of the cgroup's files that can be written, and of which owner and mode all of it is."""
    found, owners = {}, [_owner(path.lstat())]
    for file in sorted(path.iterdir()):
        st = file.lstat()
        if stat.S_ISREG(st.st_mode) and st.st_mode & 0o200 and not any(word in file.name for word in _VOLATILE):
            owners.append(_owner(st))
            # Some can only be written.
            with contextlib.suppress(OSError):
                found[file.name] = file.read_text()
    return found | {_OWNERS: "\n".join(owners)}


def _owner(st: os.stat_result) -> str:
    return f"{st.st_mode:o} {st.st_uid} {st.st_gid}"
