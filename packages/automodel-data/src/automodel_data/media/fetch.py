"""Media from allowed hosts: looked up once, connected to that address, with caps on bytes, time and redirects."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from automodel_data.cache import cache_root, published
from automodel_data.errors import BadRow, DataError
from automodel_data.media.addresses import Place, locate, require_allowed
from automodel_data.media.limits import MediaLimits

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_ATTEMPTS = 3
_USER_AGENT = "automodel-data"


def fetch(url: str, limits: MediaLimits) -> Path:
    """A local copy of a file on an allowed host, downloaded once and kept in the data cache.

    What depends on the URL alone is a bad row. What may be otherwise a moment later ends the run after three attempts,
    since ranks that see different rows would wait for each other for ever.

    Raises: BadRow: no host is allowed or not this one, the answer is no file, or it is above a cap.
        DataError: the host does not answer, or ``HF_HUB_OFFLINE`` is set and the file is not in the cache.
    """
    if not limits.hosts:
        raise BadRow("media on a network", hint="Name the host in media.hosts, or download the file.")
    key = f"media-{hashlib.sha256(url.encode()).hexdigest()[:32]}"
    copy = cache_root() / key / "file"
    if not copy.is_file():
        _, host, _ = require_allowed(url, limits.hosts)
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise DataError(f"media on {host} with HF_HUB_OFFLINE set. Unset it once to fill the cache.")
        copy = published(key, partial(_download, url, limits)) / "file"
    if copy.stat().st_size > limits.max_bytes:  # kept under a larger cap
        _refuse_size(copy.stat().st_size, limits)
    return copy


def _download(url: str, limits: MediaLimits, directory: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            data = _get(url, limits)
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1:
                host = urlsplit(url).hostname
                raise DataError(
                    f"the media host {host} does not answer: {type(error).__name__}: {error}. Rows cannot be left out "
                    "for that; try again, or download the files."
                ) from None
            time.sleep(0.2 * 2**attempt)
        else:
            (directory / "file").write_bytes(data)
            return


def _get(url: str, limits: MediaLimits) -> bytes:
    """The body, after at most three redirects on one host, all within ``max_fetch_seconds``."""
    deadline = time.monotonic() + limits.max_fetch_seconds
    parts, host, port = require_allowed(url, limits.hosts)
    for _ in range(_MAX_REDIRECTS + 1):
        place = locate(url, limits.hosts)
        if (place.scheme, place.host, place.port) != (parts.scheme, host, port):
            raise BadRow("media redirected to another host", hint=f"From {host} to {place.scheme}://{place.host}.")
        answer = _request(place, limits, deadline)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise BadRow("media redirected too often", hint=f"At most {_MAX_REDIRECTS} times.")


def _request(place: Place, limits: MediaLimits, deadline: float) -> bytes | str:
    """The body, or where a redirect points."""
    with _connected(place, deadline) as stream:
        expired = threading.Event()
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, (stream, expired.set))
        watch.daemon = True
        watch.start()
        connection = http.client.HTTPConnection(place.host, place.port)
        connection.sock = stream
        try:
            connection.request("GET", place.target, headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"})
            answer = _read(connection.getresponse(), place, limits)
        except (OSError, http.client.HTTPException):
            if not expired.is_set():
                raise
        finally:
            watch.cancel()
            connection.close()
        if expired.is_set():  # what was read until then may look like a whole answer
            raise TimeoutError(f"no whole answer within media.max_fetch_seconds={limits.max_fetch_seconds}")
        return answer


def _connected(place: Place, deadline: float) -> socket.socket:
    """A connection to the address that was checked; the certificate is that of the name."""
    left = max(0.1, deadline - time.monotonic())
    stream = socket.create_connection((place.address, place.port), timeout=left)
    if place.scheme == "http":
        return stream
    try:
        return ssl.create_default_context().wrap_socket(stream, server_hostname=place.host)
    except BaseException:
        stream.close()
        raise


def _hang_up(stream: socket.socket, tell: Callable[[], None]) -> None:
    """Ends a read that a dripping server would keep alive below any timeout of a single read."""
    tell()
    try:
        stream.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


def _read(answer: http.client.HTTPResponse, place: Place, limits: MediaLimits) -> bytes | str:
    if answer.status in _REDIRECTS and (target := answer.getheader("Location")):
        return target
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise ConnectionError(f"status {answer.status}")
    if answer.status != 200:
        raise BadRow("media host has no such file", hint=f"{place.host} answered {answer.status}.")
    announced = answer.getheader("Content-Length") or ""
    if announced.isdigit() and int(announced) > limits.max_bytes:
        _refuse_size(int(announced), limits)
    data = answer.read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        _refuse_size(len(data), limits)
    if announced.isdigit() and len(data) < int(announced):
        raise ConnectionError(f"{len(data)} of {announced} bytes")
    return data


def _refuse_size(num_bytes: int, limits: MediaLimits) -> None:
    raise BadRow("media file is too large", hint=f"{num_bytes} bytes, media.max_bytes={limits.max_bytes}.")
