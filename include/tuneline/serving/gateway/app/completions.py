"""The endpoints that ask engines: admission, the chain, and the response."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from tuneline.serving.gateway.app.runtime import Routing, Runtime
from tuneline.serving.gateway.attempt_status import AttemptStatus, ClientFault, UpstreamFault
from tuneline.serving.gateway.chain.attempt import Attempt, Call, Reply
from tuneline.serving.gateway.chain.chain import AllFailed, Chain
from tuneline.serving.gateway.request import (
    Api,
    ApiError,
    as_measured,
    check_content_type,
    error_body,
    parse_request,
    refuse_more_fields,
    try_again,
    unknown_model,
)
from tuneline.serving.protocol import DONE, event

log = logging.getLogger("tuneline.gateway")

# Whether the client is still there is looked at from then on: most answers of a small model, and
# all that are refused, are out by that time, and need no second task.
_WATCH_AFTER_S = 0.01
# A request waits this long for a ledger that falls behind: slow is better than refused.
_LEDGER_PATIENCE_S = 5.0
_LEDGER_LOOK_S = 0.05
# The code of nginx for a client that left; only the metrics show it.
_CLIENT_LEFT = 499
# Of a request that no one answered, by the last fault; 502 for all others.
_STATUS = {
    AttemptStatus.TIMEOUT: 504,
    AttemptStatus.BUDGET_SPENT: 504,
    AttemptStatus.UPSTREAM_BUSY: 503,
    AttemptStatus.CIRCUIT_OPEN: 503,
}
Connection: TypeAlias = tuple[Scope, Receive, Send]


class ChatEndpoint:
    """An endpoint as an ASGI application, since it has to see the client leave."""

    def __init__(self, runtime: Runtime, api: Api) -> None:
        self._runtime = runtime
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._runtime.request() as routing:
            connection = (scope, receive, send)
            await _Exchange(self._runtime, routing, self._api, connection).run()


class _Exchange:
    def __init__(
        self, runtime: Runtime, routing: Routing, api: Api, connection: Connection
    ) -> None:
        self._runtime = runtime
        self._routing = routing
        self._api = api
        self._scope, self._receive, self._send = connection
        self._request = Request(self._scope)
        self._id = f"req-{secrets.token_hex(12)}"
        self._began = time.perf_counter()
        self._key = ""
        self._chain: Chain
        # Only known models become labels: a client must not be able to make new series.
        self._model = ""
        self._stream = False
        self._served_by = ""
        self._reason: str | None = None
        self._status = _CLIENT_LEFT
        self._trace = runtime.trace(self._request.headers, api)
        self._watch: asyncio.Task[None] | None = None
        self._left = False

    async def run(self) -> None:
        try:
            call = await self._admit()
            await self._unless_client_leaves(
                self._serve_stream(call) if call.request.stream else self._serve_whole(call)
            )
        except ApiError as error:
            self._status = error.status
            response = error.response({"x-request-id": self._id})
            await response(self._scope, self._receive, self._send)
        finally:
            self._runtime.admission.release(self._id)
            self._note()

    async def _admit(self) -> Call:
        """Check everything that needs no upstream."""
        runtime = self._runtime
        self._key = authenticate(runtime, self._request)
        if runtime.closed:
            why = "The gateway is shutting down."
            raise try_again(503, why, 1, "shutting_down", connection="close")
        if runtime.in_flight > runtime.config.max_in_flight:
            why = "Too many requests are under way; try again shortly."
            raise try_again(429, why, 1, "too_many_requests")
        runtime.admission.enter(self._id, self._key, runtime.config.max_in_flight)
        await self._await_ledger()
        check_content_type(self._request.headers)
        raw = await self._body()
        limits = runtime.config.limits
        request = parse_request(
            self._api, raw, max_depth=limits.json_depth, max_values=limits.json_values
        )
        chain = self._chain_of(request.model)
        if chain is None:
            raise unknown_model()
        refuse_more_fields(request, chain.fields)
        asked = as_measured(request, chain.upstreams[0].config)
        self._hold(asked.memory)
        # Logs, ledger and metrics know a model by its plain id, whichever version was asked for.
        self._model, self._stream = chain.config.id, request.stream
        self._chain = chain
        call = Call(self._id, "request", self._key, self._model, asked, request, trace=self._trace)
        return runtime.admission.admit(call)

    async def _await_ledger(self) -> None:
        """Let the ledger's writer catch up; refuse what can't be recorded."""
        ledger, now = self._runtime.ledger, asyncio.get_running_loop().time
        deadline = now() + _LEDGER_PATIENCE_S
        # One that can't write at all catches up with nothing.
        while ledger.crowded and ledger.error is None and now() < deadline:
            await asyncio.sleep(_LEDGER_LOOK_S)
        if ledger.full:
            why = "Usage cannot be recorded at the moment; try again shortly."
            raise try_again(503, why, 5, "ledger_full")

    def _chain_of(self, asked: str) -> Chain | None:
        return self._routing.chain_of(asked, self._key)

    async def _body(self) -> bytes:
        limit = self._runtime.config.max_body_bytes
        length = self._request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._runtime.config.limits.body_timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(_CLIENT_LEFT, "The client left.")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    self._hold(len(body))
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, "The request body did not arrive in time.", headers={"connection": "close"}
            ) from None

    def _hold(self, size: int) -> None:
        runtime = self._runtime
        runtime.admission.hold(self._id, size, runtime.config.max_in_flight_bytes)

    @contextmanager
    def _failures_answered(self, call: Call) -> Iterator[None]:
        try:
            yield
        except AllFailed as failed:
            self._runtime.log_request(call, None, failed.last)
            raise _nobody_answered(failed) from None
        except ClientFault as fault:
            self._runtime.log_request(call, None, AttemptStatus.CLIENT_ERROR)
            raise _refused(fault) from None
        except asyncio.CancelledError:
            self._runtime.log_request(call, None, AttemptStatus.CLIENT_ABORTED)
            raise

    async def _serve_whole(self, call: Call) -> None:
        with self._failures_answered(call):
            answer = await self._chain.answer(call)
        self._log(call, answer.attempt)
        headers = self._headers(answer)
        await self._start(200, headers, b"application/json", length=len(answer.content))
        await self._send(_part(answer.content, more=False))

    async def _serve_stream(self, call: Call) -> None:
        with self._failures_answered(call):
            stream = await self._chain.stream(call)
        attempt = stream.attempt
        try:
            headers = self._headers(stream) | {"cache-control": "no-cache"}
            await self._start(200, headers, b"text/event-stream; charset=utf-8")
            try:
                async for piece in stream.pieces():
                    await self._send(_part(piece))
                attempt.end(stream.doubt or AttemptStatus.OK)
                await self._send(_part(event(DONE)))
                await stream.read_end()
            except UpstreamFault as fault:
                attempt.end(AttemptStatus.DIED_MIDSTREAM)
                attempt.upstream.health.note_fault(fault.outcome, fault.detail)
                log.warning("%s: %s died mid-stream: %s", self._id, attempt.upstream.name, fault)
                # Without [DONE], a cut answer does not look like a finished one.
                message = "The model's server broke off in the middle of the answer."
                await self._send(_part(event(error_body(message, "server_error", fault.outcome))))
            self._status = 200
            await self._send(_part(b"", more=False))
        finally:
            # An attempt without an end was cut off: the client left, or the gateway stops.
            self._chain.recorder.record(attempt, served=True)
            self._log(call, attempt)
            await stream.release()

    def _headers(self, found: Reply) -> dict[str, str]:
        attempt = found.attempt
        self._served_by = attempt.upstream.name
        headers = {
            "x-request-id": self._id,
            "x-tuneline-served-by": attempt.upstream.name,
            "x-tuneline-attempts": found.trail,
        }
        if found.skipped:
            headers["x-tuneline-skipped"] = found.skipped
        if attempt.fallback_reason is not None:
            self._reason = headers["x-tuneline-fallback-reason"] = attempt.fallback_reason
        return headers

    async def _start(
        self, status: int, headers: Mapping[str, str], kind: bytes, *, length: int | None = None
    ) -> None:
        """Send the head of a response; without a length its body comes in chunks."""
        raw = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()]
        raw.append((b"content-type", kind))
        if length is not None:
            raw.append((b"content-length", b"%d" % length))
            self._status = status
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _unless_client_leaves(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; stop it, and with it the upstream, when the client leaves."""
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._begin_watch, task)
        try:
            await work
        except asyncio.CancelledError:
            # A gateway that stops cancels as well, and that goes on to who waits for this task.
            if not self._left:
                raise
            task.uncancel()
        finally:
            timer.cancel()
            if self._watch is not None:
                self._watch.cancel()

    def _begin_watch(self, task: asyncio.Task[Any]) -> None:
        self._watch = asyncio.create_task(self._client_left(task))

    async def _client_left(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        task.cancel()

    def _log(self, call: Call, attempt: Attempt) -> None:
        self._runtime.log_request(call, attempt, attempt.outcome or AttemptStatus.OK)

    def _note(self) -> None:
        seconds = time.perf_counter() - self._began
        metrics = self._runtime.metrics
        metrics.requests.labels(self._model, str(self._status)).inc()
        if self._model:
            stream = str(self._stream).lower()
            metrics.request_seconds.labels(self._model, stream).observe(seconds)
        facts = {
            "request_id": self._id,
            "operation": self._api.operation,
            "key": self._key,
            "model": self._model,
            "stream": self._stream,
            "served_by": self._served_by,
            "fallback_reason": self._reason,
            "status": self._status,
            "ms": round(seconds * 1e3, 1),
        }
        log.info(
            "%(request_id)s key=%(key)s model=%(model)s served_by=%(served_by)s status=%(status)d "
            "ms=%(ms).1f",
            facts,
            extra={"fields": facts},
        )
        if self._trace is not None:
            self._trace.end(self._status, facts)


def authenticate(runtime: Runtime, request: Request) -> str:
    """Return the name of the key that a request carries.

    Raises:
        ApiError: 401, without a hint at what is wrong with the key.
    """
    scheme, _, plain = request.headers.get("authorization", "").partition(" ")
    name = runtime.keys.name_of(plain.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        raise ApiError(
            401,
            "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return name


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {limit} bytes.",
        code="request_too_large",
        # The rest of the body is not read, so the connection cannot go on.
        headers={"connection": "close"},
    )


def _nobody_answered(failed: AllFailed) -> ApiError:
    headers = {"x-tuneline-attempts": failed.trail, "x-tuneline-skipped": failed.skipped}
    if failed.retry_after_s is not None:
        headers["retry-after"] = str(ceil(failed.retry_after_s))
    return ApiError(
        _STATUS.get(failed.last, 502),
        f"No model could answer ({failed}).",
        code=str(failed.last),
        headers={name: value for name, value in headers.items() if value},
    )


def _refused(fault: ClientFault) -> ApiError:
    error = fault.error
    kind, code = error.get("type"), error.get("code")
    return ApiError(
        fault.status,
        str(error.get("message", "The model's server refused the request.")),
        kind=kind if isinstance(kind, str) else "invalid_request_error",
        code=code if isinstance(code, str) else None,
    )
