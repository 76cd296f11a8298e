"""Upstreams over bare sockets: connections that are dropped, answers that are none, proxies."""

import asyncio
import datetime
import ipaddress
import json
import socket
import ssl
import struct
from contextlib import asynccontextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tuneline.serving.gateway.attempt_status import AttemptStatus, UpstreamFault
from tuneline.serving.gateway.chain.upstream import Upstream
from tuneline.serving.gateway.upstream_config import UpstreamConfig

OK = b"HTTP/1.1 200 OK\r\n"
BODY = json.dumps({"messages": []}).encode()
ANSWER = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()
KEPT = OK + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


class Script:
    """A server that answers every request with the next of its answers, and closes after the last.

    `None` closes a connection unanswered, `ends` after it was sent; `later` comes after an answer.
    """

    def __init__(
        self, *answers: bytes | None, later: bytes = b"", ends: object = 0, resets: bool = False
    ) -> None:
        self.answers = list(answers)
        self.ends = ends
        self.later = later
        self.resets = resets
        self.heads: list[bytes] = []
        self.connections = 0
        self.drained = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers and (head := await reader.readuntil(b"\r\n\r\n")):
                self.heads.append(head.lower())
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                if (answer := self.answers.pop(0)) is None:
                    break
                writer.write(answer)
                await writer.drain()
                self.drained = True
                await asyncio.sleep(0.05 if self.later or self.resets else 0)
                writer.write(self.later)
                if answer is self.ends:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if self.resets:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


@asynccontextmanager
async def asked(script: Script, tls: ssl.SSLContext | None = None, proxy=None, **fields: object):
    """An upstream behind a script, or another one whose proxy it becomes by its port."""
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    if proxy:
        proxy(port)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    config = {"name": "a", "base_url": url, "model": "m", "connect_timeout_s": 0.5, **fields}
    upstream = Upstream(UpstreamConfig(**config))
    try:
        yield upstream
    finally:
        await upstream.aclose()
        server.close()


def run(main) -> object:
    return asyncio.run(asyncio.wait_for(main(), 30))


async def fault_at(upstream: Upstream | UpstreamConfig, ask: str = "complete") -> AttemptStatus:
    upstream = Upstream(upstream) if isinstance(upstream, UpstreamConfig) else upstream
    try:
        with pytest.raises(UpstreamFault) as caught:
            await getattr(upstream, ask)(BODY, 5)
        return caught.value.outcome
    finally:
        await upstream.aclose()


def test_a_dropped_kept_connection_costs_no_answer():
    async def main():
        script = Script(KEPT, *[None, KEPT] * 3)
        async with asked(script) as upstream:
            assert (await upstream.complete(BODY, 5))[1] == ANSWER
            # A request, a stream and a list meet a dropped connection, and are sent again.
            assert (await upstream.complete(BODY, 5))[1] == ANSWER
            response = await upstream.open_stream(BODY, 5)
            assert await response.content.read() == ANSWER
            response.close()
            with pytest.raises(UpstreamFault, match="its list of models cannot be read"):
                await upstream.listed_models(5)
        return len(script.heads), script.connections

    assert run(main) == (7, 4)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("size", [4, 20, 41])
def test_an_answer_that_has_begun_is_not_asked_for_again(size, resets):
    """Be it within its head or its body, by an end or by a reset of the connection."""
    part = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"[:size]

    async def main():
        script = Script(KEPT, part, KEPT, ends=part, resets=resets)
        async with asked(script) as upstream:
            await upstream.complete(BODY, 5)
            assert await fault_at(upstream) is AttemptStatus.CONNECTION_LOST
        return len(script.heads)

    assert run(main) == 2


def test_an_answer_that_is_too_large_is_a_failure_of_the_upstream():
    """Two million bytes where 1,000 are taken: an answer, an error, a list."""
    refusal = b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(2_000_000)

    async def main():
        async with asked(Script(*[refusal] * 3), max_answer_bytes=1_000) as upstream:
            for answer in (
                upstream.complete(BODY, 5),
                upstream.open_stream(BODY, 5),
                upstream.listed_models(5),
            ):
                with pytest.raises(UpstreamFault, match=r"more than 1,000 bytes \(`max_") as fault:
                    await answer
                assert fault.value.outcome is AttemptStatus.BAD_RESPONSE

    run(main)


BROKEN = (AttemptStatus.CONNECTION_LOST, AttemptStatus.TIMEOUT)
MOVED = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "ask", "outcomes"),
    [
        (b"220 mail.example.org ESMTP\r\n\r\n", "complete", BROKEN),
        (OK + b"x: " + b"a" * 2_000_000 + b"\r\n\r\n", "complete", BROKEN),
        (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", "complete", BROKEN),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", "complete", BROKEN),
        # A new connection that breaks is the server's fault.
        (None, "complete", BROKEN[:1]),
        (None, "open_stream", BROKEN[:1]),
        # Redirects are not followed.
        (MOVED, "complete", (AttemptStatus.UPSTREAM_REFUSED,)),
    ],
    ids=["not HTTP", "endless head", "two lengths", "broken off", "closed", "stream", "redirect"],
)
def test_what_is_no_answer(answer, ask, outcomes):
    async def main():
        script = Script(answer, KEPT, ends=answer)
        async with asked(script) as upstream:
            assert await fault_at(upstream, ask) in outcomes
        assert len(script.heads) == 1

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_bytes_that_nobody_asked_for_end_a_kept_connection(late):
    """An answer put behind another (response splitting) must not answer the next request."""
    forged = KEPT.replace(b"hi", b"no")
    first = KEPT if late else KEPT + forged

    async def main():
        script = Script(first, KEPT, later=forged if late else b"")
        async with asked(script) as upstream:
            for _ in range(2):
                assert (await upstream.complete(BODY, 5))[1] == ANSWER
                await asyncio.sleep(0.2)
        return script.connections

    assert run(main) == 2


def test_a_stream_that_is_not_read_makes_the_server_wait():
    size = 64 << 20

    async def main():
        script = Script(OK + b"content-length: %d\r\n\r\n" % size + bytes(size))
        async with asked(script) as upstream:
            response = await upstream.open_stream(BODY, 5)
            await asyncio.sleep(0.3)
            assert not script.drained
            read = 0
            while part := await response.content.readany():
                read += len(part)
            assert read == size

    run(main)


def test_nobody_listening_and_no_answer_to_a_handshake_cannot_connect():
    async def main():
        async with asked(Script()) as upstream:
            gone = upstream.config
            silent = gone.model_copy(update={"base_url": gone.base_url.replace("http:", "https:")})
            for config in (silent, gone.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})):
                assert await fault_at(config) is AttemptStatus.CONNECT_ERROR

    run(main)


def test_a_proxy_is_asked_for_a_plain_server_by_its_whole_url(monkeypatch):
    async def main():
        script, url = Script(KEPT), "http://me:p%40ss@127.0.0.1:{}"

        def proxy(port):
            monkeypatch.setenv("http_proxy", url.format(port))

        async with asked(script, None, proxy, base_url="http://engine.example:8000/v1") as upstream:
            assert (await upstream.complete(BODY, 5))[1] == ANSWER
        return script.heads[0]

    head = run(main)
    assert head.startswith(b"post http://engine.example:8000/v1/chat/completions http/1.1\r\n")
    assert b"proxy-authorization: basic bwu6cebzcw==\r\n" in head


def test_a_proxy_that_refuses_is_no_connection_and_sees_no_key(monkeypatch):
    monkeypatch.setenv("ENGINE_KEY", "secret")

    async def main():
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
        script, far = Script(refusal), {"base_url": "https://engine.example/v1"}

        def proxy(port):
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")

        async with asked(script, None, proxy, api_key_env="ENGINE_KEY", **far) as upstream:
            assert await fault_at(upstream) is AttemptStatus.CONNECT_ERROR
        assert b"secret" not in script.heads[0]

    run(main)


@pytest.fixture
def tls(tmp_path, monkeypatch) -> ssl.SSLContext:
    """A server's context with a certificate that the client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    both = tmp_path / "server.pem"
    kind = serialization.PrivateFormat.PKCS8
    both.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, kind, plain))
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(certificate.public_bytes(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that tunnels to whatever it is asked for."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b" ", 2)
    assert method == b"CONNECT"
    host, _, port = target.decode().rpartition(":")
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


def test_tls_is_checked_directly_and_through_a_proxy(tls, monkeypatch):
    async def main():
        script = Script(KEPT, KEPT)
        async with asked(script, tls) as upstream:
            assert (await upstream.complete(BODY, 5))[1] == ANSWER
            proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
            port = proxy.sockets[0].getsockname()[1]
            monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{port}")
            # An address of this machine that is not its loopback, so that the proxy is taken.
            monkeypatch.setattr(UpstreamConfig, "is_local", False)
            behind = Upstream(upstream.config)
            assert (await behind.complete(BODY, 5))[1] == ANSWER
            await behind.aclose()
            proxy.close()
            # A proxy's own key stays with the proxy, the server's key with the server.
            assert script.heads[1].startswith(b"post /v1/chat/completions http/1.1\r\n")
            assert b"proxy" not in script.heads[1]
            monkeypatch.delenv("https_proxy")
            # Without the authority the certificate is worth nothing.
            monkeypatch.delenv("SSL_CERT_FILE")
            assert await fault_at(upstream.config) is AttemptStatus.CONNECT_ERROR

    run(main)
