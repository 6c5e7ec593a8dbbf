"""A server on this machine that can stop in the middle, forget ranges and send pages."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Served:
    """What the server has and does.

    Attributes:
        files: content by path.
        stop_after: bytes of an answer after which the line breaks.
        ranges: whether it answers with parts.
        kind: content type.
        redirects: paths to other addresses.
        asked: path and range of each request.
        address: of the server.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: int | None = None
    ranges: bool = True
    kind: str = "application/octet-stream"
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def sums(self, path: str) -> tuple[str, ...]:
        return (f"sha256:{hashlib.sha256(self.files[path]).hexdigest()}",)


class _Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        served, told = self.served, self.headers.get("Range")
        served.asked.append((self.path, told))
        if to := served.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", to)
            self.end_headers()
            return
        if (content := served.files.get(self.path)) is None:
            self.send_error(404)
            return
        start = int(told.removeprefix("bytes=").rstrip("-")) if told and served.ranges else 0
        if start >= len(content) > 0 and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", served.kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if served.stop_after is None else start + served.stop_after
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    facts = Served()
    handler = type("Handler", (_Handler,), {"served": facts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        facts.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield facts
        server.shutdown()
        thread.join()
