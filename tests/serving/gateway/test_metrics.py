import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tuneline.serving.gateway.metrics import Metrics


def test_the_text_format():
    metrics = Metrics()
    metrics.counter("requests_total", "Requests.")
    metrics.histogram("seconds", "Time.")
    metrics.gauge("up", "Up.", lambda: {(): 1.0, (("of", "a"),): 0.5})
    metrics.add("requests_total", model="a", status="200")
    metrics.add("requests_total", 2, status="200", model="a")
    metrics.add("requests_total", model='say "hi"\\\n')
    metrics.observe("seconds", 0.005)
    metrics.observe("seconds", 0.02)
    metrics.observe("seconds", 1e6)
    lines = metrics.text().splitlines()
    assert "# TYPE requests_total counter" in lines
    assert 'requests_total{model="a",status="200"} 3.0' in lines
    assert 'requests_total{model="say \\"hi\\"\\\\\\n"} 1.0' in lines
    assert 'seconds_bucket{le="0.005"} 1.0' in lines
    assert 'seconds_bucket{le="0.01"} 1.0' in lines
    assert 'seconds_bucket{le="0.025"} 2.0' in lines
    assert 'seconds_bucket{le="300.0"} 2.0' in lines
    assert 'seconds_bucket{le="+Inf"} 3.0' in lines
    assert "seconds_count 3.0" in lines
    assert "seconds_sum 1.000000025e+06" in lines
    assert "up 1.0" in lines
    assert 'up{of="a"} 0.5' in lines


@pytest.mark.parametrize(
    ("accepted", "read"),
    [("", read_text), ("application/openmetrics-text; version=1.0.0", read_openmetrics)],
)
def test_the_librarys_own_readers_understand_both_formats(accepted, read):
    metrics = Metrics()
    metrics.counter("requests_total", "Requests.")
    metrics.counter("never_total", "Nothing yet.")
    metrics.histogram("seconds", "Time.")
    metrics.add("requests_total", 2, model="a")
    metrics.observe("seconds", 0.2, model="a")
    page, media_type = metrics.page(accepted)
    assert media_type.startswith("application/openmetrics-text" if accepted else "text/plain")
    found = {family.name: family for family in read(page.decode())}
    assert found["never"].samples == []
    assert [(s.labels, s.value) for s in found["requests"].samples] == [({"model": "a"}, 2.0)]
    assert found["seconds"].type == "histogram"
    assert found["process_resident_memory_bytes"].samples[0].value > 1 << 20
