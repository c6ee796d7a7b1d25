"""Arenas (`Arena`): disposable hosts, one per trial, created and removed by the warden.

An arena has its own pid, mount, ipc, uts, net and cgroup namespaces, an overlay of the host's root, fresh temporary
directories, and a cgroup in every hierarchy. A process in it sees a host; the oracle sees everything that it leaves
(namespaces(7), overlayfs in the kernel's documentation).
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from leakcheck import _native
from leakcheck.errors import TargetError, UsageError, reason
from leakcheck.subprocesses import Interrupts
from leakcheck.warden import Warden, ask, why_silent

__all__ = ["Arena", "Process", "prepare_observation", "run_in_arena"]

# An RCU grace period of a machine under load, in seconds. A value read by another process is longer.
_GRACE = 0.008
# How long a command's start may take, in seconds. The spawner gives up after 30 s.
_PATIENCE = 45
_FRESH = ("/tmp", "/run", "/var/tmp", "/dev")  # noqa: S108 - names to compare with, nothing is created there


@dataclass(frozen=True)
class Trace:
    """How a command is traced.

    `request` is as in `trace::Request` of the warden. Its report is appended to the file `log`, one JSON object a line.
    If the command is to wait at some instant, it goes on at each byte that it can read from the pipe `release`.
    """

    request: Mapping[str, Any]
    log: int
    release: int | None = None


@dataclass(eq=False)
class Process:
    """A command in an arena. `pid` is its process id on the host; `returncode` is like that of `subprocess.Popen`.

    `inside` is its process id in the arena, and the id of its session there.
    `cpu` is its processor time in seconds, including all children it waited for (getrusage(2)), once it has ended.
    """

    argv: Sequence[str | os.PathLike[str]]
    pid: int
    inside: int
    pidfd: int
    _status: int
    _done: Callable[["Process"], None]
    returncode: int | None = None
    cpu: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, -N for signal N; raise `subprocess.TimeoutExpired`.

        The code is also -9 if the arena ended with it inside.
        """
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._status, select.POLLIN)
            if not ended.poll(None if timeout is None else max(timeout, 0) * 1000):
                raise subprocess.TimeoutExpired(self.argv, timeout or 0)
            data = os.read(self._status, 12)
            if len(data) == 12:
                status, micros = struct.unpack("=iq", data)
                self.returncode, self.cpu = os.waitstatus_to_exitcode(status), micros / 1e6
            else:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code like `wait` if it has ended, None otherwise."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal through a pidfd, so never to another process that reuses the pid (pidfd_send_signal(2))."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close its descriptors, like the end of a `with`; a process that has not ended continues."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            os.close(self._status)
            self.pidfd = -1
            if self.returncode is None:
                self.returncode = -signal.SIGKILL
            self._done(self)


class Arena:
    """A disposable host. Entering brings it up; leaving removes all of it.

    Args:
        size: bytes that may be written to the root and to each fresh temporary directory; None is the kernel's default
            for a tmpfs, half of memory.
        network: ``"own"``, a new network with loopback only, or ``"host"``.
        binds: ``(source on the host, place in the arena, read only)``.
        limits: control file of a cgroup hierarchy → value, for everything in the arena: ``{"pids.max": 200}``.
        hostname: the host name inside.
        devices: more device nodes of the host, by name below /dev.
        last_pid: the process id that counts as the last used one; 0 is the kernel's default.
        keep: leave it up at the end of this process; `how_to_enter` gives the commands to enter and end it.
        fail_at: a step of the bring-up (`steps`) that fails on purpose, for tests.

    Raises:
        ArenaError: on entry; the message names the failed step and the reason. All earlier steps are undone.
        UsageError: an impossible size, limit or network.
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
        last_pid: int = 0,
        keep: bool = False,
        fail_at: str | None = None,
    ) -> None:
        if size is not None and not 65536 <= size < 1 << 50:
            raise UsageError(f"arena size {size}: give a number of bytes from 65536 to 2**50")
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
            "last_pid": last_pid,
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
        """Bring it up, as `with` does."""
        if self._warden is not None:
            raise RuntimeError("the arena is already up")
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
        self._bare_paths: list[str] = up["bare"]
        self._covered: list[str] = up["covered"]
        self._kept = f"enter it: nsenter -t {self.init} -a -r; end it: kill -TERM {warden.pid}"
        if self._keep:
            warden.keep(self._id)
        return self

    def down(self) -> None:
        """Remove it, with everything that runs in it."""
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
            warden.take_down(self._id)

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
        trace: Trace | None = None,
    ) -> Process:
        """Start a command inside, in a new session; None means our own stream, `subprocess.DEVNULL` none.

        With `trace`, it and all that it starts is traced until the arena is down (ptrace(2)).

        It raises `TargetError` if the command does not exist in the arena or cannot be executed.
        """
        if not argv:
            raise UsageError("run in an arena: no command")
        self._check_up("run something")
        # The view records the initial state of the arena, so it is created before anything runs there.
        _ = self.view
        status, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # Not in the message: they may be large and need not be UTF-8.
            with (
                Path(os.devnull).open("r+b", 0) as null,
                os.fdopen(os.memfd_create("leakcheck-command"), "wb") as strings,
            ):
                os.pwrite(strings.fileno(), _strings(cwd, argv, os.environ if env is None else env), 0)
                given = [null.fileno() if fd == subprocess.DEVNULL else fd for fd in (stdin, stdout, stderr)]
                streams = [number if fd is None else fd for number, fd in enumerate(given)]
                fds = [*streams, theirs, strings.fileno()]
                request: dict[str, Any] = {"argc": len(argv)}
                if trace is not None:
                    release = [] if trace.release is None else [trace.release]
                    request["trace"], fds = trace.request, [*fds, trace.log, *release]
                with self._lock:
                    answer, fds = ask(self._socket, request, fds, patience=_PATIENCE)
            if "pid" not in answer:
                raise TargetError(str(answer.get("error", "the arena is gone")) + _hint(os.fsdecode(argv[0]), cwd))
        except BaseException as error:
            os.close(status)
            if isinstance(error, OSError):
                raise TargetError(f"start {os.fsdecode(argv[0])} in an arena: {why_silent(error)}") from error
            raise
        finally:
            os.close(theirs)
        outside, inside = answer["pid"]
        process = Process(list(argv), outside, inside, fds[0], status, self._processes.discard)
        self._processes.add(process)
        return process

    def run(self, argv: Sequence[str | os.PathLike[str]], *, timeout: float | None = None, **options: Any) -> int:
        """Run a command inside to its end, as `popen` starts it, and return its exit code (-N: signal N).

        After `timeout` seconds it is killed, and `subprocess.TimeoutExpired` is raised.
        """
        with self.popen(argv, **options) as process:
            try:
                return process.wait(timeout)
            except BaseException:
                process.kill()
                raise

    def pids(self) -> set[int]:
        """Return the host's process ids of everything that runs inside, except init."""
        self._check_up("list processes")
        found: set[int] = set()
        if not self.cgroups:
            import psutil

            for top in (self.init, self.spawner):
                found.update(child.pid for child in psutil.Process(top).children(recursive=True))
        for path, _, _ in os.walk(next(iter(self.cgroups.values()), "")):
            found |= _members(path)
        return found - {0, self.init, self.spawner}

    @property
    def view(self) -> _native.ArenaView:
        """The view from outside that `leakcheck.snapshot` and `leakcheck.guard` take."""
        self._check_up("look")
        if self._view is None:
            written = self.written
            layers = [(path, fd, path) for path, fd in written[: len(self._layer_paths)]]
            beneath: list[tuple[str, int]] = []
            try:
                missing = self._open_beneath(beneath)
                self._view = _native.ArenaView(
                    proc=self._fds[1],
                    layers=layers,
                    roots=written[len(layers) :] + beneath,
                    cgroups=list(self.cgroups.items()),
                    not_covered=self.not_covered + missing,
                    bound=self._bound,
                )
            finally:
                for _, fd in beneath:
                    os.close(fd)
        return self._view

    def _open_beneath(self, beneath: list[tuple[str, int]]) -> list[str]:
        """Add to `beneath` the directories that mounts cover; return those that could not be opened, with the reason.

        A process may unmount one in a mount namespace of its own, and write there.
        """
        bare = list(zip(self._bare_paths, self._fds[2 + len(self.written) :], strict=True))
        missing = []
        for path in self._covered:
            top, fd = max((one for one in bare if Path(path).is_relative_to(one[0])), key=lambda one: len(one[0]))
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                beneath.append((path, os.open(os.path.relpath(path, top), flags, dir_fd=fd)))
            except (FileNotFoundError, NotADirectoryError):
                # It is in another mount; or it is a file.
                continue
            except OSError as error:
                missing.append(f"{path}: what the mount there covers: {reason(error)}")
        return missing

    @property
    def written(self) -> list[tuple[str, int]]:
        """All that was written: place in the arena and directory, those of the layers above the host's files first."""
        self._check_up("look")
        paths = [*self._layer_paths, *self._root_paths]
        return list(zip(paths, self._fds[2 : 2 + len(paths)], strict=True))

    @property
    def spawner(self) -> int:
        """The host's process id of the spawner, which starts commands inside."""
        return int(Path(f"/proc/{self.init}/stat").read_text().rpartition(")")[2].split()[1])

    @property
    def how_to_enter(self) -> str:
        """The commands that enter a kept arena, and that end it together with all others of the same warden."""
        self._check_up("say how to enter", was=True)
        return self._kept

    def is_frozen(self) -> bool:
        """Whether everything inside but PID 1 is in a frozen cgroup, so that nothing inside can thaw it."""
        frozen: set[int] = set()
        for top in self.cgroups.values():
            for path, _, _ in os.walk(top):
                with contextlib.suppress(OSError):
                    if _is_frozen(Path(path)):
                        frozen |= _members(path)
        return bool(frozen) and self.pids() <= frozen

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
    """Run `argv` in `arena`, in our working directory, like `leakcheck.subprocesses.run` on the host.

    It also raises `TargetError` if the directory does not exist there.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise UsageError("the working directory is gone: change to another one first") from None
    process = arena.popen(argv, env=env, cwd=here, stdin=0 if stdin is None else stdin, stdout=stdout)
    with interrupts.reaching(process.send_signal):
        if interrupts.wait(process.pidfd, after_int=True, stuck=arena.is_frozen):
            return process.wait()
    # A frozen process receives no signal; it ends with the arena.
    process.close()
    return -signal.SIGKILL


def prepare_observation(*, settings: bool = True) -> Callable[[], None]:
    """Prepare for an observation of an arena, so that it need not wait; the returned function ends the preparation.

    `/proc/locks` is read under a per-CPU semaphore. Its first reader waits for an RCU grace period, 8 ms or more;
    readers in the next one or two grace periods do not (kernel/rcu/sync.c). A thread keeps that state until the end of
    all preparations. With `settings`, the next guard of an arena begins with the settings that are read now, as long as
    the function exists.
    """
    return _Preparation(settings=settings).end


class _Preparation:
    _lock = threading.Lock()
    _all: ClassVar[set["_Preparation"]] = set()
    _going_on = threading.Lock()

    def __init__(self, *, settings: bool) -> None:
        self._settings: _native.Settings | None = None
        self._reader: threading.Thread | None = None
        with self._lock:
            self._all.add(self)
            if len(self._all) == 1:
                going_on = _Preparation._going_on = threading.Lock()
                going_on.acquire()
                threading.Thread(target=_read_locks, args=[going_on], name="leakcheck-locks", daemon=True).start()
        if settings:
            self._reader = threading.Thread(target=self._read_settings, name="leakcheck-settings", daemon=True)
            self._reader.start()

    def end(self) -> None:
        with self._lock:
            was_last = self._all == {self}
            self._all.discard(self)
            if was_last:
                self._going_on.release()
        if self._reader is not None:
            self._reader.join()

    def _read_settings(self) -> None:
        self._settings = _native.Settings()


def _read_locks(going_on: threading.Lock) -> None:
    """Read of the locks, in as few calls as possible, until `going_on` is released."""
    # The observation itself reports what cannot be read.
    with contextlib.suppress(OSError), Path("/proc/locks").open("rb", 0) as locks:
        os.pread(locks.fileno(), 1, 0)
        while not going_on.acquire(timeout=_GRACE / 2):
            os.pread(locks.fileno(), 1, 0)


def _members(cgroup: str) -> set[int]:
    """Return the processes of a cgroup: none if it was removed, before it was opened or before it was read."""
    try:
        return {int(pid) for pid in Path(cgroup, "cgroup.procs").read_text().split()}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return set()


def _is_frozen(cgroup: Path) -> bool:
    """Whether a cgroup is frozen (freezer-subsystem, cgroup-v2.rst)."""
    if (state := cgroup / "freezer.state").exists():
        return "FROZEN" in state.read_text()
    return (events := cgroup / "cgroup.events").exists() and "frozen 1" in events.read_text()


def _hint(program: str, cwd: str) -> str:
    """Return a hint for a command or directory that exists on the host but not in the arena."""
    for path in (cwd, program):
        if path.startswith(_FRESH) and Path(path).exists():
            return f"; an arena has its own {', '.join(_FRESH)}; bind what it needs (guard: --bind; an adapter: binds)"
    return ""


def _strings(cwd: str, argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str]) -> bytes:
    """Return working directory, arguments and environment, each terminated by a zero byte."""
    strings = [cwd, *argv, *(f"{name}={value}" for name, value in env.items())]
    encoded = [*map(os.fsencode, strings), b""]
    text = b"\0".join(encoded)
    if text.count(b"\0") >= len(encoded):
        wrong = next(one for one in encoded if b"\0" in one)
        raise UsageError(f"run in an arena: {os.fsdecode(wrong)!r} has a zero byte in it")
    return text
