"""The client of the upstreams against a server of bare sockets that says what it is told."""

import asyncio
import datetime
import ipaddress
import ssl
from contextlib import asynccontextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tuneline.serving.gateway.chain.http_answer import AnswerTooLarge, BrokenConnection
from tuneline.serving.gateway.chain.http_client import CannotConnect, HttpClient

OK = b"HTTP/1.1 200 OK\r\n"
HEADERS = {"authorization": "Bearer secret"}


class Script:
    """A server that answers every request with the next of its answers, `None` closing."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.drained = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.bodies.append(await reader.readexactly(int(length or 0)))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                self.drained = True
                if b"content-length" not in answer and b"chunked" not in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def served(script: Script, tls: ssl.SSLContext | None = None):
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def client(port: int, scheme: str = "http", proxy: str | None = None) -> HttpClient:
    return HttpClient(
        f"{scheme}://127.0.0.1:{port}/v1",
        HEADERS,
        connect_timeout_s=2,
        keepalive_s=3,
        proxy=proxy,
    )


def exchange(*answers: bytes | None, times: int = 1) -> tuple[Script, list[tuple[int, bytes]]]:
    """Ask a server that gives these answers so many times; return what came."""

    async def main():
        script = Script(*answers)
        async with served(script) as port:
            asked = client(port)
            found = []
            for _ in range(times):
                answer = await asked.send("POST", "/v1/chat", b"{}")
                found.append((answer.status, await answer.read()))
            asked.close()
            return script, found

    return asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"content-length: 2\r\n\r\nhi", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", b"hi"),
        (OK + b"\r\nuntil it closes", b"until it closes"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", b"hi"),
        (OK + b"content-length: 0\r\n\r\n", b""),
    ],
)
def test_every_framing_of_a_body_is_read(answer, body):
    script, found = exchange(answer)
    assert found == [(200, body)]
    assert script.bodies == [b"{}"]
    assert script.heads[0].startswith(b"POST /v1/chat HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: Bearer secret\r\n" in script.heads[0]


def test_a_connection_serves_again_unless_the_server_says_otherwise():
    kept = OK + b"content-length: 2\r\n\r\nhi"
    script, found = exchange(kept, kept, kept, times=3)
    assert (len(found), script.connections) == (3, 1)
    closing = OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi"
    script, found = exchange(closing, closing, times=2)
    assert (len(found), script.connections) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.org ESMTP\r\n\r\n",
        OK + b"x: " + b"a" * 2_000_000 + b"\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        None,
    ],
    ids=["not HTTP", "endless head", "two lengths", "upgrade", "closed"],
)
def test_what_is_no_answer_breaks_the_connection(answer):
    with pytest.raises(BrokenConnection):
        exchange(answer)


def test_a_body_that_breaks_off_is_not_taken_for_a_whole_one():
    # In capitals, so that the script closes its side after it.
    short = OK + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n2\r\nhi\r\n"

    async def main():
        async with served(Script(short)) as port:
            answer = await client(port).send("GET", "/")
            assert await answer.part() == b"hi"
            with pytest.raises(BrokenConnection):
                await answer.part()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_bytes_that_nobody_asked_for_end_a_kept_connection():
    """An answer put behind another (response splitting) must not answer the next request."""
    kept = OK + b"content-length: 2\r\n\r\nhi"
    forged = OK + b"content-length: 6\r\n\r\nforged"
    script, found = exchange(kept + forged, kept, times=2)
    assert found == [(200, b"hi"), (200, b"hi")]
    assert script.connections == 2


def test_a_body_that_is_not_read_makes_the_server_wait():
    size = 64 << 20

    async def main():
        script = Script(OK + b"content-length: %d\r\n\r\n" % size + bytes(size))
        async with served(script) as port:
            answer = await client(port).send("GET", "/")
            await asyncio.sleep(0.3)
            assert not script.drained
            read = 0
            while part := await answer.part():
                read += len(part)
            assert read == size

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("head", [b"content-length: 64000000\r\n\r\n", b"\r\n"])
def test_an_answer_that_is_too_large_is_given_up_and_its_connection_closed(head):
    """Whether the server says how much it will send or just goes on sending."""

    async def main():
        script = Script(OK + head + bytes(64_000_000), OK + b"content-length: 2\r\n\r\nhi")
        async with served(script) as port:
            asked = client(port)
            answer = await asked.send("GET", "/")
            with pytest.raises(AnswerTooLarge, match="more than 100,000 bytes"):
                await answer.read(100_000)
            assert not script.drained
            # The next request has a connection of its own; the rest answers nothing.
            again = await asked.send("GET", "/")
            assert await again.read(100_000) == b"hi"
            assert script.connections == 2

    asyncio.run(asyncio.wait_for(main(), 10))


def test_nobody_listening_and_no_answer_to_a_handshake_cannot_connect():
    async def main():
        script = Script()
        async with served(script) as port:
            pass
        with pytest.raises(CannotConnect):
            await client(port).send("GET", "/")
        async with served(script) as port:
            with pytest.raises(CannotConnect):
                await HttpClient(
                    f"https://127.0.0.1:{port}", {}, connect_timeout_s=0.2, keepalive_s=3
                ).send("GET", "/")

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_plain_server_behind_a_proxy_is_asked_by_its_whole_url():
    async def main():
        script = Script(OK + b"content-length: 2\r\n\r\nhi")
        async with served(script) as port:
            asked = HttpClient(
                "http://engine.example:8000/v1",
                HEADERS,
                connect_timeout_s=2,
                keepalive_s=3,
                proxy=f"http://me:p%40ss@127.0.0.1:{port}",
            )
            answer = await asked.send("GET", "/v1/models")
            assert await answer.read() == b"hi"
        assert script.heads[0].startswith(b"GET http://engine.example:8000/v1/models HTTP/1.1\r\n")
        assert b"proxy-authorization: Basic bWU6cEBzcw==\r\n" in script.heads[0]

    asyncio.run(asyncio.wait_for(main(), 10))


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


def test_tls_directly_and_through_a_proxy(tls, monkeypatch):
    kept = OK + b"content-length: 2\r\n\r\nhi"

    async def main():
        script = Script(kept, kept, kept)
        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        proxy_url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with served(script, tls) as port:
            direct, behind = client(port, "https"), client(port, "https", proxy_url)
            for asked in (direct, behind, behind):
                answer = await asked.send("GET", "/v1/models")
                assert await answer.read() == b"hi"
            assert script.connections == 2
            # A proxy's own key stays with the proxy, the server's key with the server.
            assert script.heads[1].startswith(b"GET /v1/models HTTP/1.1\r\n")
            direct.close()
            behind.close()
            # Without the authority the certificate is worth nothing.
            monkeypatch.delenv("SSL_CERT_FILE")
            with pytest.raises(CannotConnect, match="certificate"):
                await client(port, "https").send("GET", "/")
        proxy.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_proxy_that_refuses_is_no_connection():
    async def main():
        script = Script(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        async with served(script) as port:
            asked = HttpClient(
                "https://engine.example/v1",
                HEADERS,
                connect_timeout_s=2,
                keepalive_s=3,
                proxy=f"http://127.0.0.1:{port}",
            )
            with pytest.raises(CannotConnect, match="407"):
                await asked.send("GET", "/v1/models")
        assert b"secret" not in script.heads[0]

    asyncio.run(asyncio.wait_for(main(), 10))
