"""The benchmark's client over real sockets, with answers in whatever pieces they come."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager

import pytest

from tuneline.serving.client import ContextOverflow, EngineClient, EngineError, EngineUnavailable
from tuneline.serving.timed_stream import Link, read_answer, streamed_request

HELLO = [{"role": "user", "content": "hello"}]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
# Ends like a head and like an empty chunk at once; llama.cpp sends it.
KEEP = b"Keep-Alive: timeout=5, max=100\r\n"


def event(**document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def content(text):
    return event(choices=[{"delta": {"content": text}, "finish_reason": None}])


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
BODY = [content("né"), content("e"), USAGE, b"data: [DONE]\n\n"]


def chunk(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def chunked(*events, more=b""):
    parts = [STREAM + more + b"Transfer-Encoding: chunked\r\n\r\n"]
    return [*parts, *map(chunk, events), b"0\r\n\r\n"]


@contextmanager
def replies(*answers, pause=0.0, close=False):
    """Answer the requests with given pieces, on as many connections as are opened.

    Yields the address, the numbers of the connections that requests came on, and the requests.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    waiting, came, seen = list(answers), [], []

    def serve(connection, number):
        with connection:
            while True:
                request = b""
                while b'"ignore' not in request and not request.endswith(b"}"):
                    data = connection.recv(65536)
                    if not data:
                        return
                    request += data
                came.append(number)
                seen.append(request)
                pieces = waiting.pop(0)
                for piece in pieces:
                    connection.sendall(piece)
                    if pause:
                        stop.wait(pause)
                if close or not pieces:
                    return

    def accept():
        for number in range(100):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection, number), daemon=True).start()

    stop = threading.Event()
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came, seen
    finally:
        stop.set()
        listener.close()


def ask(url, count=1, timeout=2.0):
    """Ask one after the other on one link; the exchanges."""
    with EngineClient(url, model="stub", timeout=timeout) as client:
        request = streamed_request(client, HELLO, max_tokens=2)

    async def all_of_them():
        link = Link(url, timeout)
        try:
            return [await link.ask(request) for _ in range(count)]
        finally:
            link.close()

    return asyncio.run(all_of_them())


def answer(*pieces, **options):
    with replies(list(pieces), **options) as (url, _, _):
        (exchange,) = ask(url, timeout=options.get("timeout", 2.0))
        return read_answer(exchange, url)


def test_each_piece_has_the_time_at_which_it_came():
    result = answer(*chunked(*BODY, more=KEEP), pause=0.03)
    assert result.text == "née"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3, 2)
    # The head alone has no content; the pieces come 30 ms apart, on a busy machine later.
    first, second = result.chunk_times
    assert result.ttft == first >= 0.03
    assert second >= 0.06
    assert first < second < result.total
    assert result.total >= 0.15


WHOLE = b"".join(chunked(*BODY, more=KEEP))
KNOWN = STREAM + f"Content-Length: {len(b''.join(BODY))}\r\n\r\n".encode() + b"".join(BODY)
TRAILED = STREAM + b"Trailer: X-Time\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "close"),
    [
        *(
            ([WHOLE[at : at + size] for at in range(0, len(WHOLE), size)], False)
            for size in (1, 2, 7, 10_000)
        ),
        # A body of known length, one that ends with its connection, and one with trailers.
        ([KNOWN], False),
        ([STREAM + b"\r\n" + b"".join(BODY)], True),
        ([TRAILED, *map(chunk, BODY), b"0\r\nX-Time: 3\r\n\r\n"], False),
    ],
)
def test_bytes_may_come_in_any_pieces(pieces, close):
    assert answer(*pieces, close=close).text == "née"


def test_a_connection_is_kept():
    with replies(chunked(*BODY), chunked(*BODY)) as (url, came, seen):
        both = ask(url, 2)
        assert [read_answer(each, url).text for each in both] == ["née"] * 2
    assert came == [0, 0]
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert json.loads(body)["stream_options"] == {"include_usage": True}


def test_a_kept_connection_that_the_server_closes_costs_a_new_one_and_no_failure():
    with replies(chunked(*BODY), chunked(*BODY), close=True) as (url, came, _):
        first, second = ask(url, 2)
        assert read_answer(second, url).text == "née"
    assert came == [0, 1]
    assert second.sent >= first.ended


def test_a_server_that_falls_silent_is_not_waited_for_longer_than_said():
    with replies(chunked(*BODY)[:2], pause=5.0) as (url, _, _):
        (exchange,) = ask(url, timeout=0.3)
        with pytest.raises(EngineUnavailable, match="did not answer in time"):
            read_answer(exchange, url)
    assert 0.25 < exchange.ended - exchange.pieces[-1][0] < 4.0


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        ("503 Service Unavailable", "Loading model", EngineUnavailable),
        ("400 Bad Request", "should not exceed max_seq_len", ContextOverflow),
        ("500 Internal Server Error", "out of memory", EngineError),
    ],
)
def test_a_refusal_has_the_engines_words(status, message, error):
    body = json.dumps({"error": {"message": message}}).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with replies([head + body]) as (url, _, _):
        (exchange,) = ask(url)
        assert exchange.refused
        with pytest.raises(error, match=message):
            read_answer(exchange, url)


@pytest.mark.parametrize(
    ("pieces", "close", "error", "said"),
    [
        (chunked(*BODY)[:3], True, EngineUnavailable, "closed the connection"),
        # On a new connection it is the server's failure.
        ([], True, EngineUnavailable, "closed the connection"),
        (chunked(*BODY[:2]), False, EngineError, "ended before its end mark"),
        ([b"hello\r\n\r\n"], True, EngineError, "did not answer with HTTP"),
        (chunked(b"data: {half\n\n"), False, EngineError, "did not answer with JSON"),
        (chunked(event(error={"message": "no memory"})), False, EngineError, "no memory"),
    ],
)
def test_what_is_no_answer(pieces, close, error, said):
    with pytest.raises(error, match=said):
        answer(*pieces, close=close)


def test_nobody_listens():
    (exchange,) = ask("http://127.0.0.1:9")
    assert exchange.refused
    with pytest.raises(EngineUnavailable, match="can't be reached"):
        read_answer(exchange, "http://127.0.0.1:9")
