"""Listeners in an arena's network: a canary that nobody may reach, a public host, and the resolver of names there."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Self

from leakcheck.service.network import Network

__all__ = ["CANARY", "FLIPPING", "INNER", "METADATA", "PUBLIC", "PUBLIC_PORT", "Listeners"]

CANARY = 8999
"""The port of the canary, at every address of the arena."""
PUBLIC, PUBLIC_PORT = "93.184.216.34", 8998
"""A public address, which in the arena is ours: no stranger is asked."""
METADATA = "169.254.169.254"
"""Where clouds tell a machine its secrets."""
INNER, FLIPPING = "inner.leakcheck.test", "flipping.leakcheck.test"
"""A name of the loopback, and one that is public when it is asked for the first time."""


class Listeners:
    """They answer while it is entered. `reached` are the first lines of what reached the canary."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._asked: Counter[bytes] = Counter()
        self.reached: list[str] = []
        self.public: list[str] = []
        """The first lines of what reached the public host."""

    def __enter__(self) -> Self:
        canary = self._network.create(socket.AF_INET6)
        self._sockets.append(canary)
        # IPv4 too: every address of the arena.
        canary.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        canary.bind(("::", CANARY))
        canary.listen(16)
        public = self._network.listen(PUBLIC, PUBLIC_PORT)
        names = self._network.create(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets += [public, names]
        names.bind(("127.0.0.1", 53))
        for target, one in ((self._alarm, canary), (self._redirect, public), (self._resolve, names)):
            self._threads.append(threading.Thread(target=target, args=[one], name="leakcheck-canary", daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            # It wakes who waits in it; a datagram socket is not connected, and wakes all the same.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _alarm(self, listening: socket.socket) -> None:
        for line, connection in _requests(listening):
            self.reached.append(line)
            _answer(connection, "200 OK", "")

    def _redirect(self, listening: socket.socket) -> None:
        """Answer ``/to/HOST:PORT`` by a redirect to there, and all else by a page."""
        for line, connection in _requests(listening):
            self.public.append(line)
            path = line.split(" ")[1] if " " in line else "/"
            if path.startswith("/to/"):
                _answer(connection, "302 Found", f"Location: http://{path[4:]}/\r\n")
            else:
                _answer(connection, "200 OK", "")

    def _resolve(self, names: socket.socket) -> None:
        """Answer each question for an IPv4 address (RFC 1035)."""
        while True:
            try:
                question, address = names.recvfrom(512)
            except OSError:
                return
            if not question:
                return
            end = question.find(b"\0", 12) + 5
            asked, kind = question[12:end], question[end - 4 : end - 2]
            name = asked[1:].lower()
            found = b""
            if kind == b"\0\1":
                self._asked[name] += 1
                public = name.startswith(FLIPPING.partition(".")[0].encode()) and self._asked[name] == 1
                found = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(PUBLIC if public else "127.0.0.1")
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0"
            try:
                names.sendto(head + asked + found, address)
            except OSError:
                return


def _requests(listening: socket.socket) -> Iterator[tuple[str, socket.socket]]:
    """Yield the first line of each request, and its connection."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(2)
            try:
                head = connection.recv(4096)
            except OSError:
                head = b""
            yield head.partition(b"\r\n")[0].decode(errors="replace"), connection


def _answer(connection: socket.socket, status: str, headers: str) -> None:
    text = f"HTTP/1.1 {status}\r\n{headers}Content-Length: 2\r\nConnection: close\r\n\r\nok"
    try:
        connection.sendall(text.encode())
    except OSError:
        return
