"""A disposable place to plant in: own namespaces, fresh directories, cgroups of its own. Leaks there harm nobody."""

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# PROC_PID_INIT_INO of linux/proc_ns.h
FIRST_PID_NS = "4026531836"
INSIDE = "LEAKCHECK_DETECTION_PLACE"
# Set once the process has given its rights up.
LIMITED = "LEAKCHECK_DETECTION_LIMITED"
# https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
DOCKER = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,audit_write,"
    "setfcap"
)
# Where users run leakcheck with fewer rights, and how to give up the others.
RIGHTS = {
    "nobody": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    "container": ("setpriv", "--bounding-set", "-all," + ",".join(f"+{name}" for name in DOCKER.split(","))),
}
# In an arena of a user with these rights.
ARENA = "nobody in an arena"
RIGHTS_OF = {**{rights: rights for rights in RIGHTS}, ARENA: "nobody"}
NAMESPACES = ["--mount", "--ipc", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]


@dataclass(frozen=True)
class Place:
    """Where plants go, and what is watched there."""

    dir: Path
    scratch: Path
    cgroups: dict[str, Path]

    @property
    def roots(self) -> list[Path]:
        return [self.dir, Path("/dev/shm"), Path("/run")]

    def lock_file(self, pid: int) -> Path:
        """Return where the mkleak of this pid puts its lock file: its tag tells pid namespaces apart."""
        namespace = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
        return self.dir / f"leakcheck-mkleak-{pid}{'' if namespace == FIRST_PID_NS else '.' + namespace}.lock"

    def options(self, plant: str) -> list[str]:
        """Return the options that make mkleak plant here: a cgroup plant goes into the hierarchy that it is of."""
        options = ["--dir", str(self.dir)]
        if plant.startswith("cgroup-"):
            controller = plant.removeprefix("cgroup-v1-")
            hierarchy = controller if controller != plant else "v2" if "v2" in self.cgroups else "pids"
            # Where no cgroup could be made, mkleak says why.
            options += ["--cgroup", str(self.cgroups[hierarchy])] if hierarchy in self.cgroups else []
        return options


def run_inside(program: Path, arguments: list[str], output: IO[str] | None = None) -> int:
    """Run this program again in a fresh place, with `INSIDE` in its environment; return its exit code."""
    # A shell as PID 1 reaps orphans; as PID 1 the program itself would be their parent, and psutil would see children.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="leakcheck-detection-") as base, own_cgroups(Path(base).name):
        command = ["unshare", *user, *NAMESPACES, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(program)]
        done = subprocess.run([*command, *arguments], env={**os.environ, INSIDE: base}, stdout=output, check=False)
    return done.returncode


def enter(rights: str | None) -> Place | None:
    """Return the place if this program runs inside one, with fresh file systems mounted; else none.

    With `rights` it replaces this program by itself with those rights only, once the place is made.
    """
    base = os.environ.get(INSIDE)
    if base is None:
        return None
    place = Place(Path(base, "plants"), Path(base, "scratch"), cgroups_named(Path(base).name))
    if LIMITED in os.environ:
        return place
    # `unshare --mount` has made every mount private: these are in no other namespace.
    if rights:
        open_way([Path(sys.prefix), Path(sys.base_prefix).resolve(), Path(__file__).resolve().parents[2], Path(base)])
    Path(base).chmod(0o755)
    for fresh in (place.dir, place.scratch):
        fresh.mkdir()
        fresh.chmod(0o1777)
    for target in (place.dir, Path("/dev/shm"), Path("/run")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "leakcheck-detection", target], check=True)
    raise_loopback()
    if rights:
        command = [*RIGHTS[RIGHTS_OF[rights]], sys.executable, *sys.argv]
        os.execvpe(command[0], command, {**os.environ, LIMITED: rights, "HOME": "/nonexistent"})
    return place


def raise_loopback() -> None:
    """Set IFF_UP by SIOCSIFFLAGS. Once a plant has made a table of local routes, 127.0.0.1 exists only with its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))


def open_way(needed: list[Path]) -> None:
    """Let every user pass to these paths: a directory on the way that is closed shows only them."""
    for directory in sorted({parent for path in needed for parent in path.parents}):
        if directory.stat().st_mode & 0o001:
            continue
        below = sorted({path.relative_to(directory).parts[0] for path in needed if path.is_relative_to(directory)})
        kept = [os.open(directory / name, os.O_PATH) for name in below]
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "leakcheck-detection", directory], check=True)
        for name, fd in zip(below, kept, strict=True):
            (directory / name).mkdir()
            subprocess.run(
                ["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{fd}", directory / name],
                check=True,
                pass_fds=[fd],
            )
            os.close(fd)


def hierarchies() -> dict[str, Path]:
    """Return the mount point of each cgroup hierarchy, by `v2` or v1 controller."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, fs_type, options, *_ = line.split(" ")
        if fs_type == "cgroup2":
            found["v2"] = Path(point)
        elif fs_type == "cgroup":
            found.update({option: Path(point) for option in options.split(",")})
    return found


def cgroups_named(name: str) -> dict[str, Path]:
    return {key: point / name for key, point in hierarchies().items() if (point / name).is_dir()}


@contextmanager
def own_cgroups(name: str) -> Iterator[None]:
    """Make an empty cgroup in each hierarchy, at its root: the caller's own one may be somebody else's."""
    made = []
    for point in sorted(set(hierarchies().values())):
        try:
            (point / name).mkdir()
        except OSError:
            continue  # read-only or not permitted: its plants say so
        made.append(point / name)
    try:
        yield
    finally:
        # The processes of the place are gone by now; cgroups that a killed mkleak left behind are not.
        for path in made:
            for below, _, _ in os.walk(path, topdown=False):
                Path(below).rmdir()


def missing_tools() -> list[str]:
    return [tool for tool in ("unshare", "mount", "findmnt", "find", "lsof") if shutil.which(tool) is None]
