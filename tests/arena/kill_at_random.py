"""Kills owners of arenas, their wardens or their groups at random instants, and says what is left a second later.

Usage: kill_at_random.py COUNT SEED. Run as a program of its own: it adopts every orphan (PR_SET_CHILD_SUBREAPER), so
that "no process is left" means that it has no child any more.
"""

import contextlib
import fcntl
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import prctl
from waiting import PATIENCE

from leakcheck.arena import Arena
from leakcheck.errors import ArenaError, TargetError
from leakcheck.warden import Warden, shutdown

# The cgroups that this program runs in, one a hierarchy: its own, as others' arenas come and go meanwhile.
_places: list[Path] = []


@contextlib.contextmanager
def apart() -> Generator[None, None, None]:
    """Run in a new cgroup below the present one in each hierarchy, where arenas can be made."""
    for parent in present_cgroups():
        place = parent / f"leakcheck-kills-{os.getpid()}"
        place.mkdir()
        _places.append(place)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (parent / name).exists():
                (place / name).write_text((parent / name).read_text())
        (place / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        for place in _places:
            (place.parent / "cgroup.procs").write_text("0")
            # Nobody but this program was in it; what it left keeps it, and is told.
            with contextlib.suppress(OSError):
                place.rmdir()


def present_cgroups() -> list[Path]:
    """Return where this process is in each hierarchy that is mounted for writing (cgroups(7))."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = {frozenset(controllers.split(",")): path for _, controllers, path in lines}
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, (kind, _, options) = line.split(), line.split(" - ")[1].split()
        for controllers, path in paths.items():
            if controllers == {""}:
                is_it = kind == "cgroup2"
            else:
                is_it = kind == "cgroup" and controllers <= set(options.split(","))
            root, point = mount[3], Path(mount[4])
            if is_it and Path(path).is_relative_to(root) and os.access(point, os.W_OK):
                found[controllers] = point / Path(path).relative_to(root)
    return list(found.values())


def own_cgroups() -> set[Path]:
    """Cgroups of arenas that no warden holds any more."""
    walked = (entry for place in _places for entry in os.walk(place))
    found = {Path(path, name) for path, names, _ in walked for name in names if name.startswith("leakcheck-arena-")}
    locked = {path.name for path in found if is_locked(path)}
    return {path for path in found if path.name not in locked}


def in_use(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # Swept meanwhile, by another owner's warden.
        return bool((path / "cgroup.procs").read_text())
    return False


def is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def own(pipe: int) -> None:
    """Bring arenas up and down with something running inside, until killed."""
    os.setpgid(0, 0)
    warden = Warden.get()
    # An owner would start another, and that would be taken for what the killed one left.
    Warden.get = classmethod(lambda _: warden)  # type: ignore[method-assign, assignment]
    os.write(pipe, warden.pid.to_bytes(4, "little"))
    while True:
        try:
            with Arena() as arena:
                arena.popen(["/bin/sh", "-c", "mount -t tmpfs x /mnt; touch /etc/litter; sleep 1000"])
                arena.run(["/bin/true"])
        except (ArenaError, TargetError):
            time.sleep(10)


def reap_until(deadline: float) -> list[int]:
    """Reap what ends until the deadline; return what has not ended by then."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) != (0, 0):
                continue
        except ChildProcessError:
            return []
        if time.monotonic() > deadline:
            return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        time.sleep(0.001)


def described(pids: Iterable[int]) -> list[str]:
    """State, name and command of processes that are left, for the message."""
    wanted = ("Name", "State", "PPid", "NSpid", "SigPnd", "ShdPnd", "SigBlk")
    lines = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in pids]
    return [" ".join(line for line in status if line.startswith(wanted)) for status in lines]


def one(generator: random.Random, before: set[Path]) -> str | None:
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:
        os.close(reading)
        try:
            own(writing)
        finally:
            os._exit(1)
    os.close(writing)
    warden = int.from_bytes(os.read(reading, 4), "little")
    os.close(reading)
    assert owner > 1 and warden > 1
    pidfds = {"owner": os.pidfd_open(owner), "warden": os.pidfd_open(warden)}
    whom = generator.choice(["owner", "warden", "group", "both"])
    # Some at once: the warden has not run an instruction of its own then, if the machine is busy.
    time.sleep(generator.choice([0, 1, 1, 1]) * generator.uniform(0, 0.04))
    killed = time.monotonic()
    if whom == "group":
        os.killpg(owner, signal.SIGKILL)
    for name in {"both": ["owner", "warden"], "group": []}.get(whom, [whom]):
        signal.pidfd_send_signal(pidfds[name], signal.SIGKILL)
    if whom == "warden":
        # All that was inside goes with it, while the owner lives.
        while (
            busy := [path for path in own_cgroups() - before if in_use(path)]
        ) and time.monotonic() < killed + PATIENCE:
            time.sleep(0.001)
        signal.pidfd_send_signal(pidfds["owner"], signal.SIGKILL)
        if busy:
            return f"{whom}: cgroups {busy} are in use"
    rest = reap_until(killed + PATIENCE)
    for fd in pidfds.values():
        os.close(fd)
    if rest:
        return f"{whom}: left {described(rest)}"
    if whom in ("warden", "both"):
        if full := left_for(PATIENCE, before, in_use):
            return f"{whom}: cgroups {full} are in use"
    elif left := left_for(PATIENCE, before):
        return f"{whom}: cgroups {left} left"
    return None


def left_for(seconds: float, before: set[Path], counts: Callable[[Path], bool] = lambda _: True) -> set[Path]:
    """Return what is there when none of it has gone for some time: on a busy machine each takes its turn to go."""

    def now() -> set[Path]:
        return {path for path in own_cgroups() - before if counts(path)}

    until = time.monotonic() + seconds
    left = now()
    while left and time.monotonic() < until:
        time.sleep(0.01)
        still = left & now()
        if still != left:
            left, until = still, time.monotonic() + seconds
    return left


def main() -> int:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    prctl.set_child_subreaper(1)
    generator = random.Random(seed)
    mounts = Path("/proc/self/mountinfo").read_text()
    with apart():
        before = own_cgroups()
        failures = [failure for _ in range(count) if (failure := one(generator, before))]
        # The next start sweeps what a warden left that was killed, by its free lock.
        with Arena():
            pass
        shutdown()
        if swept := left_for(PATIENCE, before):
            failures.append(f"not swept: {swept}")
    if kept := [place for place in _places if place.exists()]:
        failures.append(f"not empty: {kept}")
    if Path("/etc/litter").exists():
        failures.append("a file of an arena is on the host")
    if Path("/proc/self/mountinfo").read_text() != mounts:
        failures.append("a mount of an arena is on the host")
    print(f"{count} kills, {len(failures)} left something: {failures[:5]}")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
