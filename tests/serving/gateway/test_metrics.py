import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tuneline.serving.gateway.metrics import Metrics


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
