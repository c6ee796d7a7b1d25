"""The behaviours in Python: ``suite.py BEHAVIOUR [NUMBER]``. Each one ends by itself, whatever limit fails."""

import os
import resource
import signal
import sys
import time

_BLOCK = b"x" * 65536
_HELD_S = 30


def _rest(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1))


def _burn(clock: int, seconds: float) -> None:
    until = time.clock_gettime(clock) + seconds
    while time.clock_gettime(clock) < until:
        pass


def _touch(size: int) -> None:
    held = []
    for _ in range(0, size, 1 << 20):
        # Not zeros, of which calloc() needs no page.
        held.append(bytearray(b"\1") * (1 << 20))  # noqa: PERF401 - memory is to be taken bit by bit


def _write_out(fd: int, size: int) -> None:
    done = 0
    while done < size:
        done += os.write(fd, _BLOCK[: size - done])


def _ignore_sigterm(seconds: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    _rest(seconds)


def _big_file(size: int) -> None:
    import tempfile

    # Python ignores it, and would get an error instead.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with tempfile.TemporaryFile(dir="/tmp") as file:
        _write_out(file.fileno(), size)


def _segv(_: int) -> None:
    import ctypes

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.memset(8, 1, 4)


def _abort(_: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def _exception(_: int) -> None:
    raise ValueError("nobody catches it")


def _detached() -> bool:
    """Return true in a child of nobody, in a session of its own, which has let go of what we were given."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    return True


def _children(most: int, seconds: float) -> int:
    made = 0
    try:
        while made < most:
            if os.fork() == 0:
                _rest(seconds)
                os._exit(0)
            made += 1
    except OSError:
        pass
    return made


def _fork_bomb(most: int) -> None:
    for _ in range(_children(most, 0.3)):
        os.wait()


def _zombies(most: int) -> None:
    _children(most, 0)
    _rest(0.05)


def _daemonise(_: int) -> None:
    if _detached():
        _rest(_HELD_S)
        os._exit(0)
    _rest(0.05)


def _litter(directory: str) -> None:
    for number in range(20):
        try:
            fd = os.open(f"{directory}/leakcheck-litter-{os.getpid()}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, b"litter")
        except OSError:
            return


def _shm_litter(_: int) -> None:
    import ctypes

    _litter("/dev/shm")  # noqa: S108 - what is to be littered
    libc = ctypes.CDLL(None)
    create = 0o1600
    libc.shmget(0, 4096, create)
    libc.semget(0, 1, create)
    libc.msgget(0, create)


def _fd_hog(most: int) -> None:
    try:
        for _ in range(most):
            os.open(os.devnull, os.O_RDONLY)
    except OSError:
        pass


def _sockets(_: int) -> None:
    import socket

    if not _detached():
        _rest(0.05)
        return
    held = []
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, f"\0leakcheck-{os.getpid()}")):
        try:
            one = socket.socket(family)
            one.bind(address)
            one.listen(1)
            held.append(one)
        except OSError:
            continue
    _rest(_HELD_S)
    os._exit(0)


def _mounts(_: int) -> None:
    import ctypes
    import tempfile

    libc = ctypes.CDLL(None)
    new_mounts, new_users = 0x00020000, 0x10000000
    try:
        path = tempfile.mkdtemp(prefix="leakcheck-mount-", dir="/tmp").encode()
    except OSError:
        return
    refused = libc.mount(b"leakcheck", path, b"tmpfs", 0, b"size=64k")
    if libc.unshare(new_mounts) == 0 or libc.unshare(new_mounts | new_users) == 0:
        refused += libc.mount(b"leakcheck", path, b"tmpfs", 0, b"size=64k")
    print("mounts:", "refused" if refused else "made")


_BEHAVIOURS = {
    "hello": lambda _: print("hello"),
    "cpu": lambda ms: _burn(time.CLOCK_PROCESS_CPUTIME_ID, ms / 1000),
    "memory": _touch,
    "output": lambda size: _write_out(1, size),
    "spin": lambda seconds: _burn(time.CLOCK_MONOTONIC, seconds),
    "sleep": _rest,
    "ignore_sigterm": _ignore_sigterm,
    "allocate": _touch,
    "exit": sys.exit,
    "segv": _segv,
    "abort": _abort,
    "exception": _exception,
    "flood": lambda size: _write_out(1, size),
    "big_file": _big_file,
    "fork_bomb": _fork_bomb,
    "daemonise": _daemonise,
    "zombies": _zombies,
    "temp_litter": lambda _: _litter("/tmp"),  # noqa: S108 - what is to be littered
    "shm_litter": _shm_litter,
    "fd_hog": _fd_hog,
    "sockets": _sockets,
    "mounts": _mounts,
}

if __name__ == "__main__":
    _BEHAVIOURS[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 0)
