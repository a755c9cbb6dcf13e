"""Which network addresses media may come from: allowed hosts alone, and no private address behind a public name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from automodel_data.errors import BadRow, DataError

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Place:
    """Where a request goes: ``address`` was looked up once and is what gets connected to."""

    scheme: str
    host: str
    port: int
    address: str
    target: str
    """Path and query."""


def require_allowed(url: str, hosts: Collection[str]) -> tuple[SplitResult, str, int]:
    """The parts, host and port of a URL, without looking anything up.

    Args:
        url: ``https://`` or ``http://``.
        hosts: allowed names, exactly as they stand in URLs; ``name:port`` for another port than the usual one. A
            private address is allowed only as itself, such as ``127.0.0.1:8000``; a name that leads to one is not.

    Raises: BadRow: the URL is malformed, or its host is not allowed.
    """
    parts, port = _split(url)
    host = (parts.hostname or "").rstrip(".")
    named = {host} if port == _PORTS[parts.scheme] else set()
    if not ({f"{host}:{port}"} | named) & {entry.lower() for entry in hosts}:
        raise BadRow("media on a host that is not allowed", hint=f"{host}:{port} is not in media.hosts={list(hosts)}.")
    return parts, host, port


def locate(url: str, hosts: Collection[str]) -> Place:
    """`require_allowed`, and look the host up.

    Raises: BadRow: as there, or the host leads to a private address. DataError: the name cannot be looked up now.
    """
    parts, host, port = require_allowed(url, hosts)
    addresses = _look_up(host, port)
    if host not in addresses and (private := [a for a in addresses if not is_public(a)]):
        raise BadRow("media host leads to a private address", hint=f"{host} is {private[0]}.")
    path = parts.path or "/"
    target = f"{path}?{parts.query}" if parts.query else path
    if any(ord(c) <= 32 or ord(c) >= 127 for c in target):
        raise BadRow("media address is malformed", hint="Percent-encode what is not plain ASCII.")
    return Place(parts.scheme, host, port, addresses[0], target)


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        raise BadRow("media address is malformed") from None
    if port is None or not parts.hostname:
        raise BadRow("media address is neither https nor http")
    if parts.username is not None or parts.password is not None:
        raise BadRow("media address holds a user or password", hint="Download the file and give its local path.")
    return parts, port


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"the media host {host!r} cannot be looked up: {error}. Check the name and the network."
        ) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address can be reached by anybody, the ones that it may wrap included."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = [inner for inner in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())) if inner is not None]
        if ip in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(is_public(str(inner)) for inner in wrapped):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast
