"""Fetching from a loopback server that misbehaves in every way, and from names that lead elsewhere."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from PIL import Image

from automodel_data.errors import BadRow, DataError
from automodel_data.media import MediaLimits, load_image, probe_image
from automodel_data.media.addresses import is_public, locate
from automodel_data.media.fetch import fetch

BUFFER = io.BytesIO()
Image.new("RGB", (20, 10), (200, 30, 30)).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by path, and counts."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        Handler.asked.append(self.path)
        name = self.path.strip("/").split("?")[0]
        getattr(self, "answer_" + name.replace("-", "_").replace(".", "_"))()

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_ok_png(self) -> None:
        self._send(200, PNG, Content_Type="text/html")

    def answer_moved(self) -> None:
        self._send(302, Location="/ok.png")

    def answer_elsewhere(self) -> None:
        self._send(302, Location=f"http://localhost:{self.server.server_port}/ok.png")  # type: ignore[attr-defined]

    def answer_elsewhere_allowed(self) -> None:
        self._send(302, Location="http://127.0.0.2:9/ok.png")

    def answer_to_a_file(self) -> None:
        self._send(302, Location="file:///etc/passwd")

    def answer_loop(self) -> None:
        self._send(302, Location="/loop")

    def answer_missing(self) -> None:
        self._send(404)

    def answer_flaky(self) -> None:
        self._send(*((503,) if Handler.asked.count("/flaky") < 3 else (200, PNG)))

    def answer_down(self) -> None:
        self._send(503)

    def answer_announced(self) -> None:
        self._send(200, b"x", Content_Length=str(1 << 40))

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def answer_short(self) -> None:
        self._send(200, PNG[:-10], Content_Length=str(len(PNG)))

    def answer_html(self) -> None:
        self._send(200, b"<html>", Content_Type="image/png")

    def answer_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        self._drip()

    def answer_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self._drip()

    def _drip(self) -> None:
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _seconds, sleep=time.sleep: sleep(min(_seconds, 0.05)))
    Handler.asked.clear()


def limits(*hosts: str, **keys: Any) -> MediaLimits:
    return MediaLimits.of({"hosts": list(hosts), "max_bytes": 100_000, **keys})


def test_an_allowed_host_is_asked_once(server: str) -> None:
    url = f"http://{server}/ok.png"
    assert (probe_image(url, limits(server)).width, load_image(url, limits(server)).size) == (20, (20, 10))
    load_image(url, limits(server))
    assert Handler.asked == ["/ok.png"]


def test_nothing_is_asked_without_permission(server: str) -> None:
    with pytest.raises(BadRow, match=r"media on a network.*media\.hosts"):
        fetch(f"http://{server}/ok.png", MediaLimits())
    with pytest.raises(BadRow, match="not allowed"):
        fetch(f"http://{server}/ok.png", limits("example.org"))
    with pytest.raises(BadRow, match="not allowed"):
        fetch(f"http://{server}/ok.png", limits("127.0.0.1"))  # another port
    assert Handler.asked == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("elsewhere", "host that is not allowed"),
        ("elsewhere-allowed", "redirected to another host"),
        ("to-a-file", "neither https nor http"),
        ("loop", "redirected too often"),
        ("missing", "no such file.*answered 404"),
        ("announced", "too large.*1099511627776 bytes"),
        ("endless", "too large"),
    ],
)
def test_answers_that_are_bad_rows(path: str, why: str, server: str) -> None:
    with pytest.raises(BadRow, match=why):
        fetch(f"http://{server}/{path}", limits(server, "127.0.0.2:9"))


def test_a_redirect_on_the_same_host_is_followed(server: str) -> None:
    assert fetch(f"http://{server}/moved", limits(server)).read_bytes() == PNG


def test_a_host_that_recovers_is_asked_again(server: str) -> None:
    assert fetch(f"http://{server}/flaky", limits(server)).read_bytes() == PNG


@pytest.mark.parametrize("path", ["down", "short"])
def test_a_host_that_fails_ends_the_run_instead_of_the_row(path: str, server: str) -> None:
    with pytest.raises(DataError, match=r"does not answer.*Rows cannot be left out") as error:
        fetch(f"http://{server}/{path}", limits(server))
    assert not isinstance(error.value, BadRow)
    assert Handler.asked == [f"/{path}"] * 3


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_a_dripping_answer_ends_at_the_deadline(path: str, server: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"max_fetch_seconds=0\.3"):
        fetch(f"http://{server}/{path}", limits(server, max_fetch_seconds=0.3))
    assert time.monotonic() - start < 4, "three attempts of 0.3 s; the server drips for 5 s"


def test_what_the_header_claims_is_not_believed(server: str) -> None:
    with pytest.raises(BadRow, match="not a readable image"):
        load_image(f"http://{server}/html", limits(server))


def test_offline_reads_the_cache_and_nothing_else(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(f"http://{server}/ok.png", limits(server))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(f"http://{server}/ok.png", limits(server)).read_bytes() == PNG
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        fetch(f"http://{server}/moved", limits(server))
    with pytest.raises(BadRow, match="too large"):
        fetch(f"http://{server}/ok.png", limits(server, max_bytes=10))


PRIVATE = [
    "http://localhost/a",
    "http://2130706433/a",
    "http://0x7f.1/a",
    "http://127.1/a",
    "http://[::ffff:127.0.0.1]/a",
    "http://0/a",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_other_spellings_of_a_private_address(url: str) -> None:
    host = url.removeprefix("http://").removesuffix("/a")
    with pytest.raises(BadRow, match="not allowed"):
        locate(url, ["127.0.0.1", "example.org"])
    if "[" not in host:  # one that is allowed under this spelling is still a name that leads to a private address
        with pytest.raises(BadRow, match="private address"):
            locate(url, [host])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        *((a, False) for a in ("10.0.0.1", "172.16.9.9", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0")),
        *((a, False) for a in ("127.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "fc00::1", "224.0.0.1")),
        *((a, False) for a in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1")),
        ("::ffff:93.184.216.34", True),
    ],
)
def test_what_counts_as_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/a", "neither https nor http"),
        ("https://user:secret@example.org/a", "holds a user or password"),
        ("https://example.org:99999/a", "malformed"),
        ("https:///a", "neither https nor http"),
        ("https://example.org@10.0.0.1/a", "holds a user or password"),
        ("https://example.org.evil.net/a", "not allowed"),
        ("https://example.org:8443/a", "not allowed"),
    ],
)
def test_addresses_that_are_not_asked(url: str, why: str) -> None:
    with pytest.raises(BadRow, match=why) as error:
        locate(url, ["example.org"])
    assert "secret" not in str(error.value)


def test_a_name_that_is_bound_anew_between_check_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look-up would give a private address: the connection goes to the one that was checked."""
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1", "127.0.0.1"])
    connected = []

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], timeout: float) -> Any:
        connected.append(address)
        raise ConnectionRefusedError("not in a test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(BadRow, match=r"leads to a private address. media.test is 127.0.0.1"):
        fetch("http://media.test/a.png", limits("media.test"))
    assert connected == [("93.184.216.34", 80)]


def test_line_breaks_in_an_address_reach_no_request(server: str) -> None:
    with pytest.raises(BadRow, match="malformed"):
        fetch(f"http://{server}/ok.png x", limits(server))
