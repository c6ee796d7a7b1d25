"""The client of the warden, and the protocol with it and its processes: one JSON message per packet, with descriptors.

The warden owns this process's arenas (unix(7), SOCK_SEQPACKET and SCM_RIGHTS).
"""

import atexit
import fcntl
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leakcheck._bin import helper
from leakcheck.errors import ArenaError

_PACKET = 1 << 20
_MOST_FDS = 253
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def shutdown() -> None:
    """End this process's warden, and with it all arenas that are not kept; the next arena starts another."""
    if (warden := Warden.running()) is not None:
        warden.close()


_NEEDED = {"SYS_ADMIN": 21, "NET_ADMIN": 12}
"""Capabilities that an arena of root needs, with their numbers (linux/capability.h)."""


class Warden:
    """The warden of this process: it starts with the first arena and ends with this process."""

    _one: "Warden | None" = None
    _making = threading.Lock()

    def __init__(self) -> None:
        self._owner = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # firejail takes any pid namespace for a sandbox and then drops its own, unless PID 1's environment has this.
        env = {"container": "lxc", "PATH": os.environ.get("PATH", os.defpath)}
        with theirs:
            try:
                self._process = _start(helper("warden"), [str(self._owner)], env, theirs.fileno())
            except OSError as error:
                ours.close()
                raise ArenaError(f"start the warden: {error}") from error
        self._socket = ours
        self._lock = threading.Lock()
        self._keeps = False
        self.pid = self._process.pid

    @classmethod
    def get(cls) -> "Warden":
        """Return the warden of this process; start it if there is none."""
        with cls._making:
            if (one := cls.running()) is None:
                one = cls._one = cls()
            return one

    @classmethod
    def running(cls) -> "Warden | None":
        """Return the warden of this process, or None if none runs."""
        one = cls._one
        gone = one is None or one._owner != os.getpid() or one._socket.fileno() < 0 or one._process.poll() is not None
        return None if gone else one

    def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a request and return the answer with the descriptors that came with it; raise `ArenaError`."""
        with self._lock:
            try:
                answer, received = ask(self._socket, request, fds)
            except OSError as error:
                raise ArenaError(f"ask the warden: {why_silent(error)}") from error
        if "error" in answer:
            raise ArenaError(f"arena: {answer['error']}{_lacking(answer['error'])}")
        return answer, received

    def take_down(self, arena: int) -> None:
        """Take down the arena with this number, while others may ask for theirs; raise `ArenaError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with ours:
                with theirs, self._lock:
                    _send(self._socket, {"op": "down", "id": arena}, [theirs.fileno()])
                answer, _ = _receive(ours)
        except OSError as error:
            raise ArenaError(f"ask the warden: {why_silent(error)}") from error
        if "error" in answer:
            raise ArenaError(f"arena: {answer['error']}")

    def keep(self, arena: int) -> None:
        """Let the arena with this number outlive this process."""
        self.ask({"op": "keep", "id": arena})
        self._keeps = True

    def close(self) -> None:
        """End the warden and its arenas, except those to be kept."""
        Warden._one = None
        self._socket.close()
        if not self._keeps:
            self._process.wait()


def _disown() -> None:
    """Let a forked child know that the warden is its parent's: in a new pid namespace, both may be process 1."""
    if Warden._one is not None:
        Warden._one._owner = 0


atexit.register(shutdown)
os.register_at_fork(after_in_child=_disown)


def _start(program: Path, arguments: list[str], env: dict[str, str], stdin: int) -> subprocess.Popen[bytes]:
    """Start `program` from a sealed copy in memory (memfd_create(2)).

    Then `/proc/PID/exe` and `map_files` of a process that is visible in an arena do not lead to a file of the host. If
    the system forbids such programs (`vm.memfd_noexec`), it is started from the file. Its session is its own before it
    runs: what kills the caller's process group leaves it to clean up.
    """
    command, null = [str(program), *arguments], subprocess.DEVNULL
    copy = -1
    try:
        with program.open("rb") as source:
            copy = os.memfd_create(program.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            while os.sendfile(copy, source.fileno(), None, _PACKET):
                pass
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
        # It holds no pipe of anybody: it may outlive us.
        return subprocess.Popen(
            command,
            executable=f"/proc/self/fd/{copy}",
            pass_fds=[copy],
            env=env,
            stdin=stdin,
            stdout=null,
            stderr=null,
            start_new_session=True,
        )
    except OSError:
        return subprocess.Popen(command, env=env, stdin=stdin, stdout=null, stderr=null, start_new_session=True)
    finally:
        if copy >= 0:
            os.close(copy)


def ask(
    channel: socket.socket, message: dict[str, Any], fds: Sequence[int], *, patience: float | None = None
) -> tuple[dict[str, Any], list[int]]:
    """Send a message and return the answer; if interrupted in between, the channel is unusable."""
    try:
        _send(channel, message, fds)
        answered = select.poll()
        answered.register(channel, select.POLLIN)
        if not answered.poll(None if patience is None else patience * 1000):
            raise TimeoutError(f"no answer for {patience} s (are the arena's cgroups frozen?)")
        return _receive(channel)
    except BaseException:
        channel.close()
        raise


def why_silent(error: OSError) -> str:
    """Return why the other end of a channel did not answer."""
    return "it has ended; was it killed?" if isinstance(error, BrokenPipeError | ConnectionResetError) else str(error)


def _lacking(error: str) -> str:
    """Return what root lacks if the kernel refused a step with `error`, how to get it, and what works without."""
    if error.startswith("write ") and "/tasks: invalid argument" in error and _is_real_time():
        # sched_can_attach() with CONFIG_RT_GROUP_SCHED: a new group of the cpu controller of v1 has no share of it.
        return "; a real-time process cannot enter a new cgroup of the cpu controller: start leakcheck without chrt"
    if os.geteuid() != 0 or not error.startswith("operation not permitted"):
        return ""
    status = Path("/proc/thread-self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    lacking = [name for name, bit in _NEEDED.items() if not effective >> bit & 1]
    if not lacking:
        return ""
    options = [f"--cap-add {name}" for name in lacking]
    options += ["--security-opt seccomp=unconfined", "--security-opt apparmor=unconfined"]
    return (
        f"; root has no {' and no '.join(f'CAP_{name}' for name in lacking)}: start the container with --privileged, "
        f"or with {' '.join(options)} (docker run, podman run); "
        "without an arena, leakcheck guard, pytest --leakcheck, the crate's guard and campaigns with --host work here"
    )


def _is_real_time() -> bool:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR)


def _send(channel: socket.socket, message: dict[str, Any], fds: Sequence[int]) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], list(fds), socket.MSG_NOSIGNAL)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    # Room for the largest packet would be mapped and cleared each time.
    size = channel.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    data, received, _, _ = socket.recv_fds(channel, min(size, _PACKET), _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    answer = json.loads(data) if data else {"error": "it has ended; was it killed?"}
    return (answer if isinstance(answer, dict) else {answer: True}), received
