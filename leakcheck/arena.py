"""Arenas: disposable hosts, each for one trial (`Arena`), made and taken away by the warden.

An arena has pid, mount, ipc, uts, net and cgroup namespaces of its own, an overlay of the host's root, fresh temporary
directories, and a cgroup in every hierarchy. What is run in it sees a host; the oracle sees all that it left
(namespaces(7), overlayfs in the kernel's documentation).
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from leakcheck import _native
from leakcheck.errors import TargetError, UsageError
from leakcheck.subprocesses import Interrupts
from leakcheck.warden import Warden, ask

__all__ = ["Arena", "Process", "look_soon", "run_in_arena"]

# An RCU grace period of a machine under load, in seconds; of others it is longer.
_GRACE = 0.008
# How long a command's start may take, in seconds; what runs in the arena can freeze what starts it. The spawner itself
# gives up after 30.
_PATIENCE = 45
# How often, in seconds, it is asked whether all of an arena is frozen.
_ASK = 0.1
_FRESH = ("/tmp", "/run", "/var/tmp", "/dev")  # noqa: S108 - names to compare with, nothing is made there


class Process:
    """A command in an arena. `pid` is its process id on the host; its `returncode` is as `subprocess.Popen`'s.

    `cpu` is the processor time in seconds that it took, with all that it waited for (getrusage(2)), once it has ended.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        pid: int,
        pidfd: int,
        status: int,
        done: Callable[["Process"], None],
        frozen: Callable[[], bool],
    ) -> None:
        self.argv = list(argv)
        self.pid = pid
        self.pidfd = pidfd
        self.returncode: int | None = None
        self.cpu: float | None = None
        self._status = status
        self._done = done
        self._frozen = frozen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or -N for signal N, when it has ended.

        It is -9 too where the arena ended with it inside, or is frozen so that nobody tells.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._status, select.POLLIN)
            if self.pidfd >= 0:
                ended.register(self.pidfd, select.POLLIN)
            found = dict(ended.poll(None if timeout is None else max(timeout, 0) * 1000))
            if not found:
                raise subprocess.TimeoutExpired(self.argv, timeout or 0)
            told = os.read(self._status, 12) if self._status in found or self._is_told() else b""
            if len(told) == 12:
                status, micros = struct.unpack("=iq", told)
                self.returncode, self.cpu = os.waitstatus_to_exitcode(status), micros / 1e6
            else:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def _is_told(self) -> bool:
        """Wait until it is told how it ended; false if who tells it is frozen, as all of the arena is."""
        told = select.poll()
        told.register(self._status, select.POLLIN)
        while not told.poll(_ASK * 1000):
            if self._frozen():
                return False
        return True

    def poll(self) -> int | None:
        """Return what `wait` does if it has ended, None otherwise."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, by a descriptor: never to another process that got its number (pidfd_send_signal(2))."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close its descriptors, as the end of a `with` does; the process goes on if it has not ended."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            os.close(self._status)
            self.pidfd = -1
            if self.returncode is None:
                self.returncode = -signal.SIGKILL
            self._done(self)


class Arena:
    """A disposable host. Entered, it is up; left, nothing of it is there any more.

    Args:
        size: bytes that may be written to the root and to each of the fresh temporary directories; None is what the
            kernel gives a tmpfs, half of memory.
        network: ``"own"``, a new one with loopback only, or ``"host"``.
        binds: ``(source on the host, place in the arena, read only)``.
        limits: control file of a cgroup hierarchy to value, for all that runs in the arena: ``{"pids.max": 200}``.
        hostname: its name inside.
        devices: device nodes of the host beyond the usual ones, by name below /dev.
        keep: leave it up at the end of this process; `how_to_enter` says how to look around and how to end it.
        fail_at: a step of the bring-up (`steps`) that is to fail, for tests.

    Raises:
        ArenaError: on entry; it says which step failed and why. What was done up to there is undone.
        UsageError: a size, limit or network that cannot be.
    """

    def __init__(
        self,
        *,
        size: int | None = None,
        network: str = "own",
        binds: Sequence[tuple[str | os.PathLike[str], str, bool]] = (),
        limits: Mapping[str, int | str] | None = None,
        hostname: str = "arena",
        devices: Sequence[str] = (),
        keep: bool = False,
        fail_at: str | None = None,
    ) -> None:
        if size is not None and not 65536 <= size < 1 << 50:
            raise UsageError(f"arena size {size}: give bytes, from 65536 to 2**50")
        if network not in ("own", "host"):
            raise UsageError(f"arena network {network!r}: give 'own' or 'host'")
        for name in limits or ():
            if "/" in name or "." not in name:
                raise UsageError(f"arena limit {name!r}: give a cgroup control file, such as 'pids.max'")
        for source, _, _ in binds:
            if _native.path_class(os.fspath(source)) == "nothing":
                raise UsageError(f"arena bind {os.fspath(source)}: no such file or directory")
        self._bound = [(target, str(Path(source).absolute())) for source, target, read_only in binds if not read_only]
        self._options = {
            "size": size or 0,
            "host_network": network == "host",
            "binds": [[str(Path(source).absolute()), target, read_only] for source, target, read_only in binds],
            "hostname": hostname,
            "devices": list(devices),
            "limits": [[name, str(value)] for name, value in (limits or {}).items()],
            "fail": fail_at,
        }
        self._keep = keep
        self._kept = ""
        self._warden: Warden | None = None
        self._id = 0
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self._view: _native.ArenaView | None = None
        self._processes: set[Process] = set()

    def up(self) -> Self:
        """Bring it up; `with` does."""
        if self._warden is not None:
            raise RuntimeError("bring up an arena that is up")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            warden = Warden.get()
            answer, fds = warden.ask({"op": "up", "options": self._options}, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        up = answer["up"]
        self._warden, self._id, self._socket, self._fds = warden, up["id"], ours, fds
        self.init: int = up["init"]
        self.cgroups: dict[str, str] = dict(up["cgroups"])
        self.steps: list[str] = up["steps"]
        self.not_covered: list[str] = up["not_covered"]
        self._layer_paths: list[str] = up["layers"]
        self._root_paths: list[str] = up["roots"]
        self._kept = f"enter it: nsenter -t {self.init} -a -r; end it: kill -TERM {warden.pid}"
        if self._keep:
            warden.keep(self._id)
        return self

    def down(self) -> None:
        """Take it away, with all that runs in it."""
        if self._warden is None:
            return
        warden, self._warden = self._warden, None
        for process in list(self._processes):
            process.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._view = None
        self._socket.close()
        if not self._keep:
            warden.ask({"op": "down", "id": self._id})

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start a command inside, in a session of its own; None is our own stream, `subprocess.DEVNULL` none.

        Raises:
            TargetError: there is no such command in the arena, or it cannot be executed.
        """
        if not argv:
            raise UsageError("run in an arena: no command")
        self._check_up("run something")
        # It knows what the arena came up with, so it is made before anything runs there.
        _ = self.view
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        status, theirs = os.pipe2(os.O_CLOEXEC)
        # Not in the message: they need be no UTF-8, and may be large.
        strings = os.memfd_create("leakcheck-command")
        streams = [
            number if fd is None else null if fd == subprocess.DEVNULL else fd
            for number, fd in enumerate((stdin, stdout, stderr))
        ]
        try:
            os.pwrite(strings, _strings(cwd, argv, os.environ if env is None else env), 0)
            with self._lock:
                answer, fds = ask(self._socket, {"argc": len(argv)}, [*streams, theirs, strings], patience=_PATIENCE)
        except OSError as error:
            os.close(status)
            raise TargetError(f"start {os.fsdecode(argv[0])} in an arena: {error}") from error
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(theirs)
            os.close(null)
            os.close(strings)
        if "pid" not in answer:
            os.close(status)
            raise TargetError(str(answer.get("error", "the arena is gone")) + _hint(os.fsdecode(argv[0]), cwd))
        process = Process(argv, answer["pid"], fds[0], status, self._processes.discard, self._is_frozen)
        self._processes.add(process)
        return process

    def run(self, argv: Sequence[str | os.PathLike[str]], *, timeout: float | None = None, **options: Any) -> int:
        """Run a command inside to its end, as `popen` starts it, and return its exit code (-N: signal N).

        Raises:
            subprocess.TimeoutExpired: it still ran after `timeout` seconds; then it was killed.
        """
        with self.popen(argv, **options) as process:
            try:
                return process.wait(timeout)
            except BaseException:
                process.kill()
                raise

    def pids(self) -> set[int]:
        """Return the host's process ids of all that runs inside, init apart."""
        self._check_up("list processes")
        found: set[int] = set()
        if not self.cgroups:
            import psutil

            for top in (self.init, self.spawner):
                found.update(child.pid for child in psutil.Process(top).children(recursive=True))
        for directory in list(self.cgroups.values())[:1]:
            for path, _, _ in os.walk(directory):
                with contextlib.suppress(FileNotFoundError):
                    found.update(int(pid) for pid in Path(path, "cgroup.procs").read_text().split())
        return found - {0, self.init, self.spawner}

    @property
    def view(self) -> _native.ArenaView:
        """What the oracle needs to look in from outside: `leakcheck.snapshot` and `leakcheck.guard` take it."""
        self._check_up("look")
        if self._view is None:
            _, proc, *parts = self._fds
            layers = [(path, fd, path) for path, fd in zip(self._layer_paths, parts, strict=False)]
            self._view = _native.ArenaView(
                proc=proc,
                layers=layers,
                roots=list(zip(self._root_paths, parts[len(layers) :], strict=True)),
                cgroups=list(self.cgroups.items()),
                not_covered=self.not_covered,
                bound=self._bound,
            )
        return self._view

    @property
    def spawner(self) -> int:
        """The host's process id of what starts commands inside."""
        return int(Path(f"/proc/{self.init}/stat").read_text().rpartition(")")[2].split()[1])

    @property
    def how_to_enter(self) -> str:
        """The commands that enter an arena which was kept, and that end it with all others of the same warden."""
        self._check_up("say how to enter", was=True)
        return self._kept

    def _is_frozen(self) -> bool:
        """Whether all of it is frozen, what starts commands in it too (freezer-subsystem, cgroup-v2.rst)."""
        for cgroup in self.cgroups.values():
            for name, frozen in (("freezer.state", "FROZEN"), ("cgroup.events", "frozen 1")):
                with contextlib.suppress(OSError):
                    if frozen in Path(cgroup, name).read_text():
                        return True
        return False

    def _check_up(self, what: str, *, was: bool = False) -> None:
        if self._warden is None and not (was and self._kept):
            raise UsageError(f"{what} in an arena that is not up: enter it, or call up()")


def run_in_arena(
    arena: Arena,
    argv: Sequence[str],
    env: Mapping[str, str],
    interrupts: Interrupts,
    *,
    stdout: int | None = None,
    stdin: int | None = None,
) -> int:
    """Run `argv` in `arena`, in our working directory, as `leakcheck.subprocesses.run` does on the host.

    Raises:
        TargetError: there is no such command there, or no such directory; it cannot be executed.
        GivenUp: a second SIGINT came.
    """
    # Our own standard input, where none is given.
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise UsageError("the working directory is gone: change to another one first") from None
    process = arena.popen(argv, env=env, cwd=here, stdin=0 if stdin is None else stdin, stdout=stdout)
    with interrupts.reaching(process.send_signal):
        if interrupts.wait(process.pidfd, after_int=True):
            return process.wait()
    # A frozen process takes no signal, and all of this ends with the arena.
    process.close()
    return -signal.SIGKILL


def look_soon() -> Callable[[], None]:
    """Say that somebody will look into an arena, so that the look need not wait; what is returned ends this.

    `/proc/locks` is read under a per-CPU semaphore. Who takes it first waits for an RCU grace period, 8 ms or more; for
    one or two of them after that nobody does (kernel/rcu/sync.c). Until it is ended, a thread keeps it so.
    """
    over = threading.Event()
    threading.Thread(target=_read_locks, args=[over], name="leakcheck-locks", daemon=True).start()
    return over.set


def _read_locks(over: threading.Event) -> None:
    # The look itself says what cannot be read.
    with contextlib.suppress(OSError):
        while True:
            Path("/proc/locks").read_bytes()
            if over.wait(_GRACE / 2):
                return


def _hint(program: str, cwd: str) -> str:
    """Return what to do about a command or directory that the host has and the arena does not show."""
    for path in (cwd, program):
        if path.startswith(_FRESH) and Path(path).exists():
            return f"; an arena has {', '.join(_FRESH)} anew: bind what it needs of them"
    return ""


def _strings(cwd: str, argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str]) -> bytes:
    """Return working directory, arguments and environment, each with a zero byte at its end."""
    strings = [cwd, *argv, *(f"{name}={value}" for name, value in env.items())]
    for string in map(os.fsencode, strings):
        if b"\0" in string:
            raise UsageError(f"run in an arena: {string!r} has a zero byte in it")
    return b"".join(os.fsencode(string) + b"\0" for string in strings)
