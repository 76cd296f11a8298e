"""A proxy before an S3 server that loses answers, breaks connections and refuses requests."""

import http.client
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import SplitResult, urlsplit

_ERROR = "<Error><Code>{code}</Code><Message>injected</Message></Error>"
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}
# What may go wrong with a request. The server has carried out those whose answer is lost or cut.
FAULTS = ("500", "slow down", "reset before", "answer lost", "answer cut")


class FaultyS3:
    """The proxy's rules and what it did."""

    def __init__(self, seed: int) -> None:
        self.share = 0.0
        self.script: list[str] = []
        self.injected: list[str] = []
        self.hold_parts = threading.Event()
        self.part_came, self.release = threading.Event(), threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def next_fault(self) -> str:
        with self._lock:
            if self.script:
                fault = self.script.pop(0)
            else:
                chance = self._random.random() < self.share
                fault = self._random.choice(FAULTS) if chance else ""
            if fault:
                self.injected.append(fault)
            return fault


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: SplitResult, rules: FaultyS3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.rules = behind, rules

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        rules = self.server.rules
        if "partNumber=" in self.path and rules.hold_parts.is_set():
            rules.part_came.set()
            rules.release.wait(30)
        fault = rules.next_fault()
        if fault in ("500", "slow down"):
            status, code = (500, "InternalError") if fault == "500" else (503, "SlowDown")
            self._answer(status, {}, _ERROR.format(code=code).encode())
        elif fault == "reset before":
            self._hang_up()
        else:
            status, headers, content = self._forward(body)
            if fault == "answer lost":
                self._hang_up()
            elif fault == "answer cut" and self.command == "GET" and len(content) > 1:
                self._answer(status, headers, content, cut=len(content) // 2)
                self._hang_up()
            else:
                self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        behind = self.server.behind
        upstream = http.client.HTTPConnection(str(behind.hostname), behind.port, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
        # The length of what a HEAD did not send.
        if self.command == "HEAD" and (length := answer.getheader("Content-Length")):
            kept["Content-Length"] = length
        upstream.close()
        return answer.status, kept, content

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty(endpoint: str, seed: int = 0) -> Iterator[tuple[str, FaultyS3]]:
    """Serve the proxy within the block; its address and its rules."""
    rules = FaultyS3(seed)
    server = _Proxy(urlsplit(endpoint), rules)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", rules
    finally:
        rules.release.set()
        server.shutdown()
        server.server_close()
