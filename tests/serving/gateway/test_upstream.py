"""Kept connections that the server drops: a request on one is sent again, and only then."""

import asyncio
import json

import pytest

from tuneline.serving.gateway.attempt_status import AttemptStatus, UpstreamFault
from tuneline.serving.gateway.chain.upstream import Upstream
from tuneline.serving.gateway.upstream_config import UpstreamConfig

BODY = json.dumps({"messages": []}).encode()
ANSWER = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()


class Server:
    """Answers `answered` requests of every connection, then drops it under the next one."""

    def __init__(self, answered: int, part: bytes = b"") -> None:
        self.answered = answered
        self.part = part
        self.connections = 0
        self.requests = 0

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        done = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(
                    line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:-2]
                )
                await reader.readexactly(int(fields.get("content-length", 0)))
                self.requests += 1
                if done == self.answered:
                    writer.write(self.part)
                    break
                done += 1
                length = b"content-length: %d\r\n\r\n" % len(ANSWER)
                writer.write(b"HTTP/1.1 200 OK\r\n" + length + ANSWER)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        config = UpstreamConfig(name="a", base_url=f"http://127.0.0.1:{port}/v1", model="m")
        self.upstream = Upstream(config)
        return self

    async def __aexit__(self, *_):
        await self.upstream.aclose()
        self._server.close()


def test_a_dropped_kept_connection_costs_no_answer():
    async def main():
        async with Server(answered=1) as server:
            for _ in range(6):
                payload, _ = await server.upstream.complete(BODY, 5)
                assert payload["choices"][0]["message"]["content"] == "hi"
            return server

    server = asyncio.run(main())
    # Every second one met a dropped connection and was sent again.
    assert server.requests > 6
    assert server.connections > 1


def test_streams_and_lists_of_models_are_sent_again_too():
    async def main():
        async with Server(answered=1) as server:
            for _ in range(2):
                response = await server.upstream.open_stream(BODY, 5)
                assert await response.read() == ANSWER
                response.close()
            with pytest.raises(UpstreamFault, match="its list of models cannot be read"):
                await server.upstream.listed_models(5)
            return server

    assert asyncio.run(main()).requests > 3


@pytest.mark.parametrize("ask", ["complete", "open_stream"])
def test_a_new_connection_that_breaks_is_the_servers_fault(ask):
    async def main():
        async with Server(answered=0) as server:
            with pytest.raises(UpstreamFault) as caught:
                await getattr(server.upstream, ask)(BODY, 5)
            return server, caught.value

    server, fault = asyncio.run(main())
    assert fault.outcome == AttemptStatus.CONNECTION_LOST
    assert server.requests == 1


def test_an_answer_that_has_begun_is_not_asked_for_again():
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"

    async def main():
        async with Server(answered=1, part=head) as server:
            await server.upstream.complete(BODY, 5)
            with pytest.raises(UpstreamFault) as caught:
                await server.upstream.complete(BODY, 5)
            return server, caught.value

    server, fault = asyncio.run(main())
    assert fault.outcome == AttemptStatus.CONNECTION_LOST
    assert server.requests == 2


def test_an_answer_that_is_too_large_is_a_failure_of_the_upstream():
    """Two million bytes where 1,000 are taken: an answer, an error, a list."""
    refusal = b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(2_000_000)

    async def main():
        async with Server(answered=0, part=refusal) as server:
            config = server.upstream.config.model_copy(update={"max_answer_bytes": 1_000})
            upstream = Upstream(config)
            for asked in (
                upstream.complete(BODY, 5),
                upstream.open_stream(BODY, 5),
                upstream.listed_models(5),
            ):
                with pytest.raises(UpstreamFault, match=r"more than 1,000 bytes \(`max_") as fault:
                    await asked
                assert fault.value.outcome is AttemptStatus.BAD_RESPONSE
            await upstream.aclose()

    asyncio.run(main())
