"""A busy neighbour: what else happens on a host while somebody guards a run.

It starts and ends processes (some become orphans, some stay zombies for a while), opens and closes descriptors of every
sort, mounts and unmounts in a mount namespace of its own, and writes, renames, links and removes temporary files in the
roots given. Prints ``READY`` when all that goes on. Ends at the end of its standard input, with its parent, at SIGTERM,
or after ``--seconds``, and takes all that it made with it.
"""

import argparse
import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
PR_SET_PDEATHSIG = 1
PREFIX = "leakcheck-noise-"

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """A system call of libc, which raises OSError."""
    if getattr(libc, name)(*args) < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")


class Processes:
    """Children that end at once, that leave orphans, and that nobody waits for until later."""

    COMMANDS = (
        ("true",),
        ("sh", "-c", "exit 3"),
        ("sh", "-c", "true | cat | true"),
        ("sleep", "0.02"),
        # The shell ends first: init gets an orphan, and later a zombie.
        ("sh", "-c", "sleep 0.03 & :"),
        ("setsid", "sh", "-c", "sleep 0.01 & :"),
        ("unshare", "--mount", "--uts", "--ipc", "true"),
    )

    def __init__(self):
        self.children = deque()

    def act(self, rng):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.children.append(subprocess.Popen(rng.choice(self.COMMANDS), **quiet))
        while len(self.children) > 6:
            self.children.popleft().wait(timeout=60)

    def end(self):
        while self.children:
            self.children.popleft().wait(timeout=60)


class Descriptors:
    """Files, deleted files, pipes, sockets that listen, anonymous inodes, locks and mappings, none for long."""

    def __init__(self, roots):
        self.roots = roots
        self.held = deque()

    def act(self, rng):
        make = rng.choice((self.pipe, self.anonymous, self.tcp, self.udp, self.abstract, self.deleted, self.mapped))
        self.held.append(make(rng))
        while len(self.held) > 24:
            self.held.popleft()()

    def pipe(self, _rng):
        ends = os.pipe()
        return lambda: [os.close(end) for end in ends]

    def anonymous(self, rng):
        if rng.random() < 0.5:
            poll = select.epoll()
            return poll.close
        fd = rng.choice((lambda: os.eventfd(0), lambda: os.memfd_create("noise"), lambda: os.pidfd_open(os.getpid())))()
        return lambda: os.close(fd)

    def tcp(self, _rng):
        return socket.create_server(("127.0.0.1", 0)).close

    def udp(self, _rng):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        return sock.close

    def abstract(self, rng):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"\0{PREFIX}{rng.getrandbits(48):x}")
        sock.listen()
        return sock.close

    def deleted(self, rng):
        file = tempfile.TemporaryFile(dir=rng.choice(self.roots))  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        return file.close

    def mapped(self, rng):
        with tempfile.NamedTemporaryFile(dir=rng.choice(self.roots), prefix=PREFIX) as file:
            file.truncate(mmap.PAGESIZE)
            return mmap.mmap(file.fileno(), mmap.PAGESIZE).close

    def end(self):
        while self.held:
            self.held.popleft()()


class Mounts:
    """Mounts in the noise's own namespace; some unmounted while a descriptor still keeps them."""

    def __init__(self, place):
        self.place = place
        self.held = deque()

    def act(self, rng):
        target = os.fsencode(self.place)
        if rng.random() < 0.3:
            call("mount", b"/usr", target, None, MS_BIND, None)
        else:
            call("mount", b"noise", target, b"tmpfs", 0, b"size=64k")
            (self.place / "file").write_text("noise")
        if rng.random() < 0.5:
            self.held.append(os.open(self.place, os.O_RDONLY))
        call("umount2", target, MNT_DETACH)
        while len(self.held) > 3:
            os.close(self.held.popleft())

    def end(self):
        while self.held:
            os.close(self.held.popleft())


class Files:
    """Temporary files as programs write them: a name and its end, a directory with files, replacement by rename."""

    def __init__(self, roots):
        self.roots = roots
        self.places = {root: Path(tempfile.mkdtemp(dir=root, prefix=PREFIX)) for root in roots}
        self.made = deque()

    def act(self, rng):
        root = rng.choice(self.roots)
        rng.choice((self.flat, self.tree, self.replace, self.link))(root)
        while len(self.made) > 30:
            self.remove(self.made.popleft())

    @staticmethod
    def remove(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def flat(self, root):
        fd, path = tempfile.mkstemp(dir=root, prefix=PREFIX)
        os.write(fd, b"noise")
        os.close(fd)
        self.made.append(Path(path))

    def tree(self, root):
        path = Path(tempfile.mkdtemp(dir=root, prefix=PREFIX))
        (path / "deep").mkdir()
        (path / "deep" / "file").write_text("noise")
        (path / "link").symlink_to("deep")
        os.mkfifo(path / "fifo")
        self.made.append(path)

    def replace(self, root):
        fresh = self.places[root] / f".fresh.{time.monotonic_ns()}"
        fresh.write_text("noise")
        fresh.replace(self.places[root] / "state")

    def link(self, root):
        fd, path = tempfile.mkstemp(dir=root, prefix=PREFIX)
        os.close(fd)
        second = Path(path + ".link")
        second.hardlink_to(path)
        Path(path).unlink()
        self.made.append(second)

    def end(self):
        for path in [*self.made, *self.places.values()]:
            with contextlib.suppress(FileNotFoundError):
                self.remove(path)


def main():
    """Make noise until told to stop; print how many acts it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="the longest that it lives")
    parser.add_argument("--pause", type=float, default=0.004, help="seconds between two acts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("roots", nargs="+", type=Path)
    args = parser.parse_args()

    def stop(signum, _frame):
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGTERM)
    # As root only: elsewhere the file and process noise is what there is.
    own_mounts = os.geteuid() == 0
    if own_mounts:
        call("unshare", CLONE_NEWNS)
        call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)

    rng = random.Random(args.seed)
    roots = [root for root in args.roots if os.access(root, os.W_OK)]
    files = Files(roots)
    sources = [Processes(), Descriptors(roots), files]
    if own_mounts:
        sources.append(Mounts(files.places[roots[0]]))
    acts = 0
    until = time.monotonic() + args.seconds
    try:
        while time.monotonic() < until:
            if select.select([sys.stdin], [], [], args.pause)[0] and not os.read(0, 4096):
                break
            rng.choice(sources).act(rng)
            acts += 1
            if acts == 4 * 30:
                print("READY", flush=True)
    finally:
        # Ending is short, and a second signal must not cut it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for source in reversed(sources):
            source.end()
    print(f"DONE {acts}", flush=True)


if __name__ == "__main__":
    main()
