"""Places where users run leakcheck with fewer rights: as nobody, and in a container with Docker's capabilities."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.detection.place import RIGHTS

BIN = Path(sys.executable).parent
CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
# Where a directory is mounted while its path is recreated.
ASIDE = ("/mnt", "/media", "/srv", "/opt")
# As container engines make it, with the message queues of the IPC namespace.
DEV = """
mount -t tmpfs -o mode=755 tmpfs {aside}
for file in null zero full random urandom tty; do touch {aside}/$file; mount --bind /dev/$file {aside}/$file; done
for directory in shm pts; do mkdir {aside}/$directory; mount --rbind /dev/$directory {aside}/$directory; done
ln -s /proc/self/fd {aside}/fd
ln -s pts/ptmx {aside}/ptmx
mkdir {aside}/mqueue; mount -t mqueue mqueue {aside}/mqueue
mount --move {aside} /dev
"""

Place = Callable[..., subprocess.CompletedProcess[str]]


def _prepared(inner: str, command: Sequence[str], dev: bool = False) -> list[str]:
    """Fresh default roots, and a way for everybody to what leakcheck needs, in a mount namespace that ends with it.

    With `dev` also a fresh /dev.
    """
    needed = [CHECKOUT, BIN.parent, Path(sys.base_prefix).resolve()]
    fresh = {Path(root).resolve(): "1777" for root in ROOTS if Path(root).is_dir()}
    for directory in {parent for path in needed for parent in path.parents}:
        if not directory.stat().st_mode & 0o001:
            fresh.setdefault(directory, "755")
    aside = next(Path(a) for a in ASIDE if Path(a).is_dir() and not any(p.is_relative_to(a) for p in needed))
    script = ["set -e"]
    for directory, mode in sorted(fresh.items()):
        children = sorted({path.relative_to(directory).parts[0] for path in needed if path.is_relative_to(directory)})
        here = shlex.quote(str(directory))
        script += [f"mount --bind {here} {aside}", f"mount -t tmpfs -o mode={mode} tmpfs {here}"]
        for child in map(shlex.quote, children):
            script += [f"mkdir {here}/{child}", f"mount --bind {aside}/{child} {here}/{child}"]
        script.append(f"umount {aside}")
    if dev:
        script.append(DEV.format(aside=aside))
    return ["sh", "-c", "\n".join([*script, "cd /", inner]), "sh", *command]


def _run(command: Sequence[str], timeout: float, home: bool) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    env.pop("PYTEST_XDIST_WORKER", None)
    env.pop("LEAKCHECK_RUN", None)
    env["HOME"] = "/nowhere"
    if not home:
        del env["HOME"]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env, timeout=timeout, check=False
    )


def _usable() -> str | None:
    if os.geteuid() != 0:
        return "only root can give rights up"
    for tool in ("setpriv", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} of util-linux is missing"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"no namespaces can be made here: {tried.stderr.decode()}"


@pytest.fixture
def as_nobody() -> Place:
    """Run a command as an ordinary user, in fresh roots: another's files beside it are no matter of these tests."""
    if why := _usable():
        pytest.skip(why)

    def call(
        *command: str, before: str = "", home: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        # What the test started beside it writes its process id to a file.
        end = "[ ! -e /tmp/pid ] || kill -9 $(cat /tmp/pid)"
        inner = f'{before}\nstatus=0\n{" ".join(RIGHTS["nobody"])} "$@" || status=$?\n{end}\nexit $status'
        outer = ["unshare", "--mount", "--propagation", "private"]
        return _run([*outer, *_prepared(inner, command)], timeout, home)

    return call


@pytest.fixture
def in_container() -> Place:
    """Run a command as root with Docker's default capabilities, in namespaces of its own."""
    if why := _usable():
        pytest.skip(why)

    def call(
        *command: str, before: str = "", home: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        inner = f'{before}\nexec {" ".join(RIGHTS["container"])} "$@"'
        spaces = ["--pid", "--mount", "--net", "--uts", "--ipc", "--cgroup"]
        outer = ["unshare", *spaces, "--propagation", "private", "--fork", "--kill-child", "--mount-proc"]
        return _run([*outer, *_prepared(inner, command, dev=True)], timeout, home)

    return call
