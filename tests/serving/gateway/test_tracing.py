"""Traces over a real socket, as a collector receives them, and the log as JSON lines."""

import gzip
import json
import logging
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tuneline.serving.gateway.app.server import JsonFormatter

from .conftest import ask

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


class Collector:
    """An OTLP receiver; `spans` are what it got."""

    def __init__(self) -> None:
        self.spans: list = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.bodies.append(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.stop()


def facts(span) -> dict:
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_is_a_request_with_two_attempts(start, small, large, collector, stream):
    gateway = start(small, large, tracing={"endpoint": collector.url})
    gateway.wait_all_ready()
    small.mode = "error"
    body = ask(messages=[{"role": "user", "content": "the-prompt"}], stream=stream, max_tokens=3)
    response = gateway.client.post("/v1/chat/completions", json=body, headers=PARENT)
    assert response.status_code == 200
    gateway.stop()
    request, left, served = sorted(
        collector.spans, key=lambda span: (span.kind, span.start_time_unix_nano)
    )
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert {left.parent_span_id, served.parent_span_id} == {request.span_id}
    assert (request.name, served.name) == ("POST /v1/chat/completions", "chat large-model")
    assert facts(request)["http.response.status_code"] == 200
    assert facts(request)["gen_ai.request.model"] == "support"
    assert facts(request)["tuneline.key"] == "tester-0"
    assert facts(request)["tuneline.fallback_reason"] == "upstream_5xx"
    assert facts(left)["error.type"] == "upstream_5xx"
    assert left.status.code == 2
    assert "gen_ai.usage.output_tokens" not in facts(left)
    found = facts(served)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.max_tokens"] == 3
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (1, 3)
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert found["server.port"] == large.port
    assert found["tuneline.served"] is True
    assert ("gen_ai.response.time_to_first_chunk" in found) is stream
    assert request.end_time_unix_nano >= served.end_time_unix_nano > served.start_time_unix_nano
    # The engine can go on from its attempt.
    (seen,) = [headers for headers in large.headers if "traceparent" in headers]
    assert seen["traceparent"] == f"00-{TRACE}-{served.span_id.hex()}-01"
    for secret in (b"the-prompt", gateway.key.encode(), b"large-0"):
        assert not any(secret in body for body in collector.bodies)


def test_a_sample_and_what_the_client_decided(start, small, collector):
    gateway = start(small, tracing={"endpoint": collector.url, "sample_rate": 0})
    gateway.chat()
    gateway.client.post("/v1/chat/completions", json=ask(), headers=PARENT)
    gateway.stop()
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_a_collector_that_is_not_there_holds_up_nothing(start, small):
    gateway = start(small, tracing={"endpoint": "http://127.0.0.1:9/v1/traces"})
    assert [gateway.chat().status_code for _ in range(3)] == [200] * 3


def test_a_refused_request_is_traced_as_well(start, small, collector):
    gateway = start(small, tracing={"endpoint": collector.url})
    assert gateway.chat(model="other").status_code == 404
    gateway.stop()
    (span,) = collector.spans
    assert facts(span)["http.response.status_code"] == 404


def test_without_the_section_opentelemetry_is_not_loaded():
    code = (
        "import sys, tuneline.serving.gateway.app.server\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    include = Path(__file__).parents[3] / "include"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(include)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_log_is_a_json_object_a_line(launch, small):
    process = launch(small, log={"format": "json"})
    answer = process.ask(messages=[{"role": "user", "content": "the-prompt"}])
    process.end()
    lines = [json.loads(line) for line in process.read_log().splitlines()]
    (line,) = [line for line in lines if "request_id" in line]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["key"], line["model"], line["status"]) == ("tester", "support", 200)
    assert (line["operation"], line["served_by"], line["level"]) == ("chat", "small", "info")
    assert line["ms"] > 0
    assert not [word for word in (process.key, "the-prompt") if word in process.read_log()]


def test_a_traceback_is_one_line_too():
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("a", 40, "p", 1, "failed %s", ("x",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "failed x"
    assert line["traceback"].endswith("second")
