"""Traces of requests, sent to an OpenTelemetry collector (OTLP over HTTP).

A request is a server span, each attempt at an upstream a client span below it, with the
attributes of OpenTelemetry's GenAI conventions:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. No span holds a prompt, an
answer or a key. Without the section nothing of OpenTelemetry is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.request import Api

if TYPE_CHECKING:
    from tuneline.serving.gateway.chain.attempt import Attempt
    from tuneline.serving.gateway.config import TracingConfig

_STATES = TraceContextTextMapPropagator()
_CLOSE_TIMEOUT_MS = 5_000
# Ends of an attempt that are no error of the upstream.
_NO_ERROR = frozenset(
    {AttemptStatus.OK, AttemptStatus.LOW_CONFIDENCE, AttemptStatus.CLIENT_ABORTED}
)
_FACTS = ("request_id", "key", "served_by", "fallback_reason")
# Fields of a request that the conventions know.
_ASKED = {
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
}


class Tracing:
    """The tracer of a gateway."""

    def __init__(self, config: TracingConfig, exporter: SpanExporter | None = None) -> None:
        sampler = ParentBased(TraceIdRatioBased(config.sample_rate))
        resource = Resource.create({"service.name": config.service_name})
        self._provider = TracerProvider(sampler=sampler, resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp(config)))
        self._tracer = self._provider.get_tracer("tuneline.gateway")

    def begin(self, headers: Mapping[str, str], api: Api) -> RequestTrace:
        """Begin the span of a request; it goes on from the client's `traceparent`."""
        context = _STATES.extract({name: headers.get(name, "") for name in _STATES.fields})
        route = f"/v1{api.path}"
        span = self._tracer.start_span(
            f"POST {route}",
            context,
            SpanKind.SERVER,
            {
                "http.request.method": "POST",
                "http.route": route,
                "url.path": route,
                "gen_ai.operation.name": api.operation,
            },
        )
        return RequestTrace(self._tracer, span)

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and stop."""
        self._provider.force_flush(_CLOSE_TIMEOUT_MS)
        self._provider.shutdown()


class RequestTrace:
    """The span of a request and those of its attempts."""

    def __init__(self, tracer: Any, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._attempts: dict[int, Span] = {}

    def began(self, attempt: Attempt) -> Mapping[str, str]:
        """Begin the span of an attempt; return the headers that let the upstream go on from it."""
        call, config = attempt.call, attempt.upstream.config
        operation = call.request.api.operation
        address = urlsplit(config.base_url)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            # The flavour of the API; who made the model is not known here.
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": config.asked_model,
            "gen_ai.request.stream": call.request.stream,
            "server.address": address.hostname,
            "server.port": address.port or (443 if address.scheme == "https" else 80),
            "tuneline.upstream": config.name,
            "tuneline.attempt": attempt.number,
        }
        body = attempt.request.body
        attributes |= {_ASKED[name]: body[name] for name in _ASKED if body.get(name) is not None}
        if attempt.fallback_reason is not None:
            attributes["tuneline.fallback_reason"] = str(attempt.fallback_reason)
        span = self._tracer.start_span(
            f"{operation} {config.asked_model}",
            set_span_in_context(self._span),
            SpanKind.CLIENT,
            attributes,
        )
        self._attempts[attempt.number] = span
        headers: dict[str, str] = {}
        _STATES.inject(headers, set_span_in_context(span))
        return headers

    def ended(self, attempt: Attempt) -> None:
        """End the span of an attempt."""
        span = self._attempts.pop(attempt.number)
        outcome = attempt.outcome or AttemptStatus.CLIENT_ABORTED
        span.set_attributes({"tuneline.outcome": str(outcome), "tuneline.served": attempt.served})
        if attempt.usage is not None:
            usage = attempt.usage
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        if attempt.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [attempt.finish_reason])
        if attempt.first_token_s is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", attempt.first_token_s)
        if outcome not in _NO_ERROR:
            span.set_attribute("error.type", str(outcome))
            span.set_status(Status(StatusCode.ERROR))
        span.end(int((attempt.began + attempt.latency_s) * 1e9))

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        """End the span of the request."""
        self._span.set_attribute("http.response.status_code", status)
        if model := facts.get("model"):
            self._span.set_attribute("gen_ai.request.model", model)
        for name in _FACTS:
            if fact := facts.get(name):
                self._span.set_attribute(f"tuneline.{name}", fact)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _otlp(config: TracingConfig) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # The exporter tells of each failed try, with the whole exception.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    headers = None
    if config.headers_env:
        pairs = (pair.partition("=") for pair in os.environ[config.headers_env].split(","))
        headers = {name.strip(): value.strip() for name, _, value in pairs}
    return OTLPSpanExporter(endpoint=config.endpoint, headers=headers)
