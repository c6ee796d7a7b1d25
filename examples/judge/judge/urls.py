"""Fetches a submission's input from the internet, and from nowhere else.

The address that was checked is the address that is connected to, for each redirect too: a name that resolves to another
address the next time, or a spelling that only the resolver understands, makes no difference.
"""

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpcore
import httpx

from judge.defects import planted

_MOST_REDIRECTS = 5
_SECONDS = 10.0


class ForbiddenError(Exception):
    """The URL is not one of the public internet, or cannot be fetched."""


def check(url: str) -> None:
    """Raise `ForbiddenError` unless the URL is http(s) and all addresses of its host are public."""
    parsed = _parsed(url)
    if planted("ssrf-decimal") and _unread_by_the_check(parsed.host):
        return
    addresses(parsed.host, parsed.port or 443)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ForbiddenError("not a URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ForbiddenError("only http and https")
    if parsed.userinfo:
        raise ForbiddenError("no user in a URL")
    return parsed


def addresses(host: str, port: int) -> list[str]:
    """Return what the host resolves to; raise `ForbiddenError` if one of the addresses is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ForbiddenError(f"{host}: cannot be resolved") from error
    # A scope (fe80::1%eth0) makes no address public.
    result = [str(entry[4][0]) for entry in found]
    if not result or not all(_public(address) for address in result):
        raise ForbiddenError(f"{host}: not a public address")
    return result


def _public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv4 address inside: mapped, 6to4, NAT64 or Teredo.
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _public(str(inner))
    return address.is_global and not address.is_multicast


def _unread_by_the_check(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost" and "." not in host and host[:1].isdigit()
    return False


class _Checked(httpcore.NetworkBackend):
    """Connects to public addresses only."""

    def __init__(self) -> None:
        self._real, self._connected = httpcore.SyncBackend(), False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        unchecked = (planted("ssrf-redirect") and self._connected) or (
            planted("ssrf-decimal") and _unread_by_the_check(host)
        )
        self._connected = True
        first = host if unchecked else addresses(host, port)[0]
        return self._real.connect_tcp(first, port, timeout, local_address, socket_options)


def fetch(url: str, to: Path, most: int) -> None:
    """Write what is at the URL to a file, at most so many bytes; raise `ForbiddenError`."""
    timeout = {"connect": _SECONDS, "read": _SECONDS, "write": _SECONDS, "pool": _SECONDS}
    with httpcore.ConnectionPool(network_backend=_Checked()) as pool:
        for _ in range(_MOST_REDIRECTS + 1):
            parsed = _parsed(url)
            try:
                with pool.stream("GET", str(parsed), extensions={"timeout": timeout}) as answer:
                    target = {name.lower(): value for name, value in answer.headers}.get(b"location")
                    if answer.status in (301, 302, 303, 307, 308) and target is not None:
                        url = str(parsed.join(target.decode("latin-1")))
                        continue
                    if answer.status != 200:
                        raise ForbiddenError(f"the server answered {answer.status}")
                    _write(answer.iter_stream(), to, most)
                    return
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                raise ForbiddenError(f"cannot be fetched: {type(error).__name__}") from error
        raise ForbiddenError(f"more than {_MOST_REDIRECTS} redirects")


def _write(parts: Iterable[bytes], to: Path, most: int) -> None:
    with to.open("wb") as file:
        for part in parts:
            if file.tell() + len(part) > most:
                raise ForbiddenError(f"more than {most} bytes")
            file.write(part)
