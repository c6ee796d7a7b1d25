"""Sockets of an arena's network, for clients and listeners that run here.

A socket belongs to the network namespace of the thread that creates it, whichever thread uses it
(network_namespaces(7)). So one thread enters the arena's network and creates the sockets of all others.
"""

import ctypes
import os
import queue
import socket
import threading
from concurrent.futures import Future
from typing import Self

from leakcheck.errors import UnavailableError

__all__ = ["Network"]

_CLONE_NEWNET = 0x40000000


class Network:
    """The network of the process `pid`; leaving lets it go."""

    def __init__(self, pid: int) -> None:
        self._asked: queue.SimpleQueue[tuple[int, int, Future[socket.socket]] | None] = queue.SimpleQueue()
        self._entered: Future[None] = Future()
        self._thread = threading.Thread(target=self._create, args=[pid], name="leakcheck-network", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._entered.result()
        except OSError as error:
            self._thread.join()
            raise UnavailableError(f"enter the arena's network: {error.strerror}; run it as root") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._asked.put(None)
        self._thread.join()

    def create(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a new socket in the arena's network; raise `OSError`."""
        made: Future[socket.socket] = Future()
        self._asked.put((family, kind, made))
        return made.result(timeout=30)

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a TCP connection, whose calls each may take `timeout` seconds; raise `OSError`."""
        made = self.create(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.settimeout(timeout)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return made

    def listen(self, host: str, port: int = 0, *, backlog: int = 64) -> socket.socket:
        """Return a listening TCP socket; raise `OSError`."""
        made = self.create(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(backlog)
        except BaseException:
            made.close()
            raise
        return made

    def _create(self, pid: int) -> None:
        try:
            _enter(pid)
        except BaseException as error:  # noqa: BLE001 - `__enter__` raises it
            self._entered.set_exception(error)
            return
        self._entered.set_result(None)
        while (one := self._asked.get()) is not None:
            family, kind, made = one
            try:
                made.set_result(socket.socket(family, kind | socket.SOCK_CLOEXEC))
            except BaseException as error:  # noqa: BLE001 - `create` raises it
                made.set_exception(error)


def _enter(pid: int) -> None:
    """Move the calling thread into the network of `pid` (setns(2)); raise `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
