"""Metrics, traces as a collector receives them over a real socket, and the log as JSON lines."""

import gzip
import json
import logging
import sys
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from tests.lab.commands import call
from tests.lab.http_server import Handler, serving
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.app.server import JsonFormatter
from tuneline.serving.gateway.metrics import Metrics

from .conftest import ask


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.gauge("up", "Up.", lambda: {(): 1.0, (("of", "a"),): 0.5})
    metrics.requests.labels("a", "200").inc()
    metrics.requests.labels("a", "200").inc(2)
    metrics.requests.labels('say "hi"\\\n', "404").inc()
    for seconds in (0.005, 0.02, 1e6):
        metrics.request_seconds.labels("a", "false").observe(seconds)
    return metrics


def test_the_text_format(metrics):
    lines = [line.replace("tuneline_gateway_", "") for line in metrics.text().splitlines()]
    assert "# TYPE requests_total counter" in lines
    assert 'requests_total{model="a",status="200"} 3.0' in lines
    assert 'requests_total{model="say \\"hi\\"\\\\\\n",status="404"} 1.0' in lines
    buckets = {"0.005": 1, "0.01": 1, "0.025": 2, "300.0": 2, "+Inf": 3}
    for limit, count in buckets.items():
        labels = f'le="{limit}",model="a",stream="false"'
        assert f"request_seconds_bucket{{{labels}}} {count}.0" in lines
    assert 'request_seconds_count{model="a",stream="false"} 3.0' in lines
    assert 'request_seconds_sum{model="a",stream="false"} 1.000000025e+06' in lines
    assert "up 1.0" in lines
    assert 'up{of="a"} 0.5' in lines
    # What has not happened yet is listed too, and no series of times at which others were made.
    assert "# TYPE skipped_total counter" in lines
    assert not any("_created" in line for line in lines)


@pytest.mark.parametrize(
    ("accepted", "read"),
    [("", read_text), ("application/openmetrics-text; version=1.0.0", read_openmetrics)],
)
def test_the_librarys_own_readers_understand_both_formats(metrics, accepted, read):
    page, media_type = metrics.page(accepted)
    assert media_type.startswith("application/openmetrics-text" if accepted else "text/plain")
    found = {
        family.name.removeprefix("tuneline_gateway_"): family for family in read(page.decode())
    }
    assert found["skipped"].samples == []
    assert [s.value for s in found["requests"].samples] == [3.0, 1.0]
    assert found["request_seconds"].type == "histogram"
    assert found["process_resident_memory_bytes"].samples[0].value > 1 << 20


def test_metrics_count_what_happened(start, small):
    gateway = start(small)
    gateway.chat()
    gateway.stream()
    gateway.rows(2)
    gateway.wait_ready()
    wait_for(lambda: 'requests_total{model="support",status="200"} 2' in gateway.metrics)
    assert 'request_seconds_count{model="support",stream="true"} 1' in gateway.metrics
    assert 'time_to_first_token_seconds_count{upstream="small"} 1' in gateway.metrics
    assert "tuneline_gateway_ready 1" in gateway.metrics
    assert gateway.key not in gateway.metrics


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
def collector():
    """An OTLP receiver: its address, the spans that it got, and the bodies that they came in."""
    got = SimpleNamespace(spans=[], bodies=[])

    class Collector(Handler):
        def do_POST(self):
            body = self.body()
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            got.bodies.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    got.spans += scope.spans
            self.answer(b"")

    with serving(Collector) as url:
        got.url = f"{url}/v1/traces"
        yield got


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
    assert {
        **{"http.response.status_code": 200, "gen_ai.request.model": "support"},
        **{"tuneline.key": "tester-0", "tuneline.fallback_reason": "upstream_5xx"},
    }.items() <= facts(request).items()
    assert (facts(left)["error.type"], left.status.code) == ("upstream_5xx", 2)
    assert "gen_ai.usage.output_tokens" not in facts(left)
    found = facts(served)
    assert {
        **{"gen_ai.operation.name": "chat", "gen_ai.request.max_tokens": 3},
        **{"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 3},
        **{"gen_ai.response.finish_reasons": ["stop"], "server.port": large.port},
    }.items() <= found.items()
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
    # A refused request is traced as well.
    gateway.client.post("/v1/chat/completions", json=ask(model="other"), headers=PARENT)
    gateway.stop()
    (span,) = collector.spans
    assert (span.trace_id.hex(), facts(span)["http.response.status_code"]) == (TRACE, 404)


def test_a_collector_that_is_not_there_holds_up_nothing(start, small):
    gateway = start(small, tracing={"endpoint": "http://127.0.0.1:9/v1/traces"})
    assert [gateway.chat().status_code for _ in range(3)] == [200] * 3


def test_without_the_section_opentelemetry_is_not_loaded():
    code = (
        "import sys, tuneline.serving.gateway.app.server\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert call(sys.executable, "-c", code, check=True).stdout.strip() == "[]"


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
