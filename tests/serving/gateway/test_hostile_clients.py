"""Clients that send what no library sends, over raw sockets, to the gateway as it runs."""

import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest
from tests.lab.waiting import wait_for

from .conftest import Process, ask, upstream_entry

LIMITS = {
    "header_bytes": 4096,
    "header_timeout_s": 0.6,
    "body_timeout_s": 0.6,
    "idle_timeout_s": 2,
    "write_timeout_s": 1,
}
END = b"\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, servers):
    """One gateway for all of them: each must leave it in order for the next."""
    servers["small"].reset()
    upstream = upstream_entry(servers["small"], ping=False)
    settings = {"max_body_bytes": 200_000, "limits": LIMITS}
    with Process(tmp_path_factory.mktemp("hostile") / "gateway", upstream, **settings) as process:
        yield process
        process.client.close()


@pytest.fixture(autouse=True)
def still_in_order(gateway, small):
    yield
    small.reset()
    assert gateway.ask().status_code == 200
    wait_for(lambda: "tuneline_gateway_in_flight 0" in gateway.client.get("/metrics").text)


class Raw:
    """A socket to the gateway, from an address of the loopback network."""

    def __init__(self, gateway: Process, address: str = "127.0.0.1") -> None:
        host, _, port = gateway.base_url.removeprefix("http://").partition(":")
        source = (address, 0)
        self.socket = socket.create_connection((host, int(port)), 10, source_address=source)
        self.key = gateway.key.encode()

    def head(self, *lines: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
        start = [b"POST " + path + b" HTTP/1.1", b"Host: a", b"Authorization: Bearer " + self.key]
        return b"\r\n".join([*start, *lines]) + END

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_for_ever(self, data: bytes, pause_s: float = 0.0) -> None:
        for _ in range(1000):
            self.send(data)
            time.sleep(pause_s)

    def until_closed(self) -> bytes:
        """What comes until the gateway closes the connection."""
        got = b""
        with suppress(ConnectionResetError):
            while part := self.socket.recv(65536):
                got += part
        return got

    def ask_live(self) -> bytes:
        """The answer of a probe; the connection stays open."""
        self.send(b"GET /v1/health/live HTTP/1.1\r\nHost: a" + END)
        got = b""
        while not got.endswith(b"}"):
            got += (part := self.socket.recv(65536))
            assert part, "the connection was closed"
        return got

    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.until_closed().split(b"HTTP/1.1 ")[1:]]


def body(**fields: object) -> bytes:
    return json.dumps(ask(**fields)).encode()


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Content-Length: 5", b"Content-Length: 50"],
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: -1"],
        [b"Content-Length : 5"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding:\x0bchunked"],
        [b"X: a\x00b", b"Content-Length: 5"],
        [b"X: a", b" folded: b", b"Content-Length: 5"],
    ],
)
def test_where_a_body_ends_is_never_in_doubt(gateway, small, lines):
    """A proxy that reads it differently would let one client's request begin inside another's."""
    raw = Raw(gateway)
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + raw.key + END
    raw.send(raw.head(*lines) + b"0\r\n\r\n" + smuggled)
    statuses = raw.statuses()
    assert len(statuses) <= 1 or 200 not in statuses, statuses
    assert statuses == [] or statuses[0] >= 400
    assert small.requests() == []


@pytest.mark.parametrize(
    "chunk", [b"-5\r\nabcde", b"5;a=\x00\r\nabcde", b"FFFFFFFFFFFFFFFFF\r\na", b"5\nabcde"]
)
def test_broken_chunks_reach_no_engine(gateway, small, chunk):
    raw = Raw(gateway)
    raw.send(raw.head(b"Transfer-Encoding: chunked") + chunk + b"\r\n0" + END)
    assert 200 not in raw.statuses()
    assert small.requests() == []


def test_headers_that_trickle_in_are_cut_off(gateway):
    raw = Raw(gateway)
    raw.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 (broken pipe or reset)
        raw.send_for_ever(b"X-A: b\r\n", pause_s=0.1)
    assert time.monotonic() - began < 8


def test_a_connection_without_a_request_is_closed(gateway):
    assert Raw(gateway).until_closed() == b""


def test_a_body_that_trickles_in_is_408(gateway, small):
    raw = Raw(gateway)
    raw.send(raw.head(b"Content-Length: 1000") + b"{")
    threading.Thread(target=_drip, args=(raw,), daemon=True).start()
    assert raw.statuses() == [408]
    assert small.requests() == []


def test_a_refused_request_may_not_drip_its_body_for_ever(gateway):
    raw = Raw(gateway)
    raw.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000" + END)
    drip = threading.Thread(target=_drip, args=(raw,), daemon=True)
    drip.start()
    assert raw.statuses() == [401]
    drip.join(5)
    assert not drip.is_alive()


def _drip(raw: Raw) -> None:
    with suppress(OSError):
        raw.send_for_ever(b" ", pause_s=0.1)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("big", [b"X-A: " + b"a" * 9000, b"X: a\r\n" * 2000 + b"Y: b"])
def test_large_headers_are_431(gateway, big, pieces):
    raw = Raw(gateway)
    data = raw.head(big, b"Content-Length: 0")
    for i in range(pieces):
        raw.send(data[len(data) * i // pieces : len(data) * (i + 1) // pieces])
        time.sleep(0.05)
    assert raw.statuses() == [431]


def test_an_endless_header_does_not_fill_the_memory(gateway):
    raw = Raw(gateway)
    raw.send(b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(OSError):  # noqa: PT011 (broken pipe or reset)
        raw.send_for_ever(b"a" * 65536)


def test_a_body_larger_than_declared_is_another_request_and_no_http(gateway, small):
    raw = Raw(gateway)
    raw.send(raw.head(b"Content-Length: 2") + b"{}" + b'{"model": "support"}')
    assert raw.statuses()[-1] == 400
    assert small.requests() == []


def message(role: bytes = b'"user"', more: bytes = b"") -> bytes:
    """A body with one message, and more fields."""
    return b'{"model": "support", "messages": [{"role": %b}]%b}' % (role, more)


def many(start: bytes, count: int, end: bytes = b"") -> bytes:
    return b'{"model": "support", "messages": [' + start * count + end + b"]}"


CHAT, TEXT = "chat/completions", "completions"
PACKED, FORM = {"content-encoding": "gzip"}, {"content-type": "text/plain"}
WRONG = [
    *((CHAT, text, 400, "JSON") for text in (b"", b"{", b"\xff\xfe{}", b'{"model": NaN}')),
    *((CHAT, text, 400, "JSON") for text in (b"[" * 190_000, message(more=b', "x": NaN'))),
    (CHAT, b"[]", 400, "object"),
    (CHAT, b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "nested"),
    (CHAT, many(b"[" * 70 + b"]" * 70, 1), 400, "nested deeper than 64"),
    (CHAT, many(b'{"role":"a"},', 40_000, b"1"), 413, "larger"),
    (CHAT, iter([b" " * 150_000] * 2), 413, "larger"),
    (CHAT, many(b'{"role":"a"},', 12_000, b"1"), 400, "more than 20000 lists, objects and fields"),
    (CHAT, b'{"messages": [{"role": "user"}]}', 400, "`model` must be"),
    (CHAT, b'{"model": 5, "messages": []}', 400, "`model` must be"),
    (CHAT, b'{"model": "nope", "messages": [{"role": "user"}]}', 404, "GET /v1/models"),
    (CHAT, b'{"model": "support"}', 400, "`messages` must be"),
    (CHAT, many(b"", 1), 400, "`messages` must be"),
    (CHAT, many(b'"hi"', 1), 400, "`messages[0]` must be"),
    (CHAT, message(role=b'"u", "content": 1'), 400, "content` must"),
    (CHAT, message(more=b', "top_p": 1e999'), 400, "`top_p` must be"),
    (CHAT, message(more=b', "n": "2"'), 400, "`n` must be"),
    (CHAT, message(more=b', "n": true'), 400, "`n` must be"),
    (CHAT, message(more=b', "stream": 1'), 400, "`stream` must be"),
    (CHAT, message(more=b', "stream_options": 1'), 400, "`stream_options` must be"),
    # One request asks for a bounded number of answers.
    (CHAT, message(more=b', "n": 129'), 400, "`n` must be"),
    (TEXT, b'{"model": "support", "prompt": [%b"a"]}' % (b'"a",' * 128), 400, "`prompt` must be"),
    (TEXT, b'{"model": "support", "prompt": [%b[1]], "n": 3}' % (b"[1]," * 42), 400, "at most 128"),
    (TEXT, b'{"model": "support", "prompt": "a", "best_of": 2}', 400, "`best_of` must be left out"),
    ("embeddings", b'{"model": "support", "input": "a"}', 400, "Embeddings are not offered"),
]


@pytest.mark.parametrize(("path", "content", "status", "word"), WRONG)
def test_bodies_that_are_wrong_get_one_sentence(gateway, small, path, content, status, word):
    response = gateway.client.post(f"/v1/{path}", content=content)
    assert response.status_code == status
    message = response.json()["error"]["message"]
    assert word in message
    assert message.endswith(".")
    assert "\n" not in message
    assert small.requests() == []


def test_wrong_types_methods_and_encodings(gateway):
    client = gateway.client
    url = f"/v1/{CHAT}"
    for headers, word in ((FORM, "Content-Type"), (PACKED, "uncompressed")):
        answer = client.post(url, content=body(), headers=headers)
        assert (answer.status_code, word in answer.text) == (415, True)
    wrong = client.get(url)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "Method Not Allowed."
    assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    json_as_declared = {"content-type": "application/json; charset=utf-8"}
    assert client.post(url, content=body(), headers=json_as_declared).status_code == 200


def test_of_two_equal_fields_the_engine_sees_what_was_checked(gateway, small):
    twice = b'{"model": "nope", "top_p": "high", "model": "support", "top_p": 1, ' + body()[1:]
    assert gateway.client.post("/v1/chat/completions", content=twice).status_code == 200
    (seen,) = small.requests()
    assert (seen["model"], seen["top_p"]) == ("small-model", 1)


def test_what_is_no_http_is_400_in_json(gateway):
    raw = Raw(gateway)
    raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + END)
    answer = raw.until_closed()
    assert b" 400 " in answer
    assert json.loads(answer.split(END)[1])["error"]["type"] == "invalid_request_error"


def test_a_client_that_stops_reading_frees_its_place(gateway, small, monkeypatch):
    # More than the kernel's buffers hold.
    small.words = 5_000
    monkeypatch.setattr(small, "_text", lambda *_: "word " * 2_000)
    raw = Raw(gateway)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.send(raw.head(b"Content-Length: %d" % len(body(stream=True))) + body(stream=True))
    raw.socket.recv(100)
    wait_for(lambda: 'outcome="client_aborted"' in httpx.get(f"{gateway.base_url}/metrics").text)


def test_a_client_that_does_not_await_its_answers_is_closed(gateway):
    raw = Raw(gateway)
    raw.send(b"GET /v1/health/ready HTTP/1.1\r\nHost: a" + END)
    raw.send((b"GET /v1/health/ready HTTP/1.1\r\nHost: a" + END) * 5_000)
    assert len(raw.statuses()) < 100


def test_idle_connections_shut_nobody_out(small, launch):
    process = launch(upstream_entry(small, ping=False), files=200)
    asked = b"Content-Length: %d" % len(body())
    waiting = Raw(process)
    small.mode = "hang"
    waiting.send(waiting.head(asked) + body())
    wait_for(small.requests)
    other = Raw(process, "127.0.0.2")
    assert b" 200 OK" in other.ask_live()
    silent = [Raw(process) for _ in range(260)]
    assert process.probe("live") == 200
    # Who has one connection keeps it.
    assert b" 200 OK" in other.ask_live()
    small.mode = "ok"
    late = Raw(process)
    late.send(late.head(asked) + body())
    assert b" 200 OK" in late.socket.recv(65536)
    # A connection with a request under way is not idle; idle ones are closed soon.
    small.stop()
    assert b" 502 " in waiting.socket.recv(65536)
    assert {raw.until_closed() for raw in silent} == {b""}


def test_many_half_open_connections_hold_up_nobody(gateway):
    slow = [Raw(gateway) for _ in range(300)]
    for raw in slow:
        raw.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert gateway.ask().status_code == 200
    assert {raw.until_closed() for raw in slow} == {b""}
