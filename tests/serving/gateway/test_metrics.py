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
    assert 'requests_total{model="a",status="200"} 3' in lines
    assert 'requests_total{model="say \\"hi\\"\\\\\\n"} 1' in lines
    assert 'seconds_bucket{le="0.005"} 1' in lines
    assert 'seconds_bucket{le="0.01"} 1' in lines
    assert 'seconds_bucket{le="0.025"} 2' in lines
    assert 'seconds_bucket{le="300"} 2' in lines
    assert 'seconds_bucket{le="+Inf"} 3' in lines
    assert "seconds_count 3" in lines
    assert "seconds_sum 1000000.025" in lines
    assert "up 1" in lines
    assert 'up{of="a"} 0.5' in lines
    assert metrics.text().endswith("\n")
