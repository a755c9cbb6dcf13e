"""Small servers that answer as a Google bucket and as the Hugging Face hub do, for the requests that reading needs."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


class Store(BaseHTTPRequestHandler):
    """Answers from ``server.files``, path -> bytes."""

    @property
    def files(self) -> Mapping[str, bytes]:
        return self.server.files  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.answer(urlsplit(self.path).path, parse_qs(urlsplit(self.path).query))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(urlsplit(self.path).path, parse_qs(body.decode()))

    def answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        raise NotImplementedError

    def send(self, body: bytes | Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        is_json = not isinstance(body, bytes)
        data = json.dumps(body).encode() if is_json else body
        first, last = 0, len(data) - 1
        if (wanted := self.headers.get("Range")) and status == 200:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(begin), min(int(end or last), last), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
        self.send_header("Content-Length", str(last + 1 - first))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[first : last + 1])

    def log_message(self, *arguments: Any) -> None:
        if getattr(self.server, "verbose", False):
            sys.stderr.write(f"{self.command} {self.path} {arguments[1:]}\n")


class GoogleBucket(Store):
    """``/storage/v1/b/BUCKET/o`` lists, ``.../o/NAME`` describes, with ``alt=media`` gives the bytes."""

    def answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        bucket, _, name = path.split("/b/", 1)[1].partition("/o")
        name = unquote(name.removeprefix("/"))
        if not name:
            prefix = query.get("prefix", [""])[0]
            self.send({"items": [self.described(bucket, n) for n in sorted(self.files) if n.startswith(prefix)]})
        elif name not in self.files:
            self.send({"error": {"code": 404, "message": f"No such object: {bucket}/{name}"}}, status=404)
        elif query.get("alt") == ["media"]:
            self.send(self.files[name])
        else:
            self.send(self.described(bucket, name))

    def described(self, bucket: str, name: str) -> dict[str, Any]:
        data, digest = self.files[name], hashlib.md5(self.files[name]).hexdigest()
        address = f"http://{self.headers['Host']}/download/storage/v1/b/{bucket}/o/{name}?alt=media"
        found = {"kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(data))}
        return {**found, "generation": str(int(digest[:12], 16)), "mediaLink": address}


class Hub(Store):
    """One dataset repository ``org/name``, of one commit, called ``main`` and ``v1``."""

    def answer(self, path: str, query: Mapping[str, list[str]]) -> None:
        if path.startswith("/api/datasets/org/name/"):
            self.describe(path.removeprefix("/api/datasets/org/name/"), query)
        elif path == "/api/datasets/org/name":
            self.send(self.repository())
        elif path.startswith("/datasets/org/name/resolve/"):
            revision, _, file = path.removeprefix("/datasets/org/name/resolve/").partition("/")
            self.resolve(unquote(revision), unquote(file))
        else:
            self.missing("RepoNotFound")

    def describe(self, rest: str, query: Mapping[str, list[str]]) -> None:
        kind, _, rest = rest.partition("/")
        revision, _, below = rest.partition("/")
        if revision not in ("main", "v1", COMMIT):
            self.missing("RevisionNotFound")
        elif kind == "revision":
            self.send(self.repository())
        elif kind == "tree":
            self.send([self.entry(n) for n in sorted(self.files) if n.startswith(unquote(below))])
        elif kind == "paths-info":
            self.send([self.entry(n) for n in query.get("paths", []) if n in self.files])
        else:
            self.missing("EntryNotFound")

    def resolve(self, revision: str, file: str) -> None:
        if revision not in ("main", "v1", COMMIT) or file not in self.files:
            self.missing("EntryNotFound")
            return
        digest = hashlib.sha1(self.files[file]).hexdigest()
        self.send(self.files[file], {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def repository(self) -> dict[str, Any]:
        files = [{"rfilename": name} for name in sorted(self.files)]
        return {"id": "org/name", "sha": COMMIT, "private": False, "siblings": files, "tags": [], "downloads": 0}

    def entry(self, name: str) -> dict[str, Any]:
        return {
            "type": "file",
            "path": name,
            "size": len(self.files[name]),
            "oid": hashlib.sha1(self.files[name]).hexdigest(),
        }

    def missing(self, code: str) -> None:
        self.send({"error": "not found"}, {"X-Error-Code": code}, status=404)


@contextmanager
def serving(kind: type[Store], files: dict[str, bytes], *, verbose: bool = False) -> Iterator[str]:
    """The address of a server of ``files``, which may change while it runs."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    httpd.files, httpd.verbose = files, verbose  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
