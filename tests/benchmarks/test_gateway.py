import json
import os
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from benchmarks.contest.contest import Options
from benchmarks.contest.report import ratios_of
from benchmarks.contest.trial import WARM_UP, Sample, conduct
from benchmarks.serving.peer_gateways import litellm
from benchmarks.serving.request_trials import CONNECTIONS, STREAMS, requests

from benchmarks import gateway
from tuneline.errors import TunelineError


def test_requests_go_through_the_real_gateway(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_PYTHON", str(tmp_path / "nowhere"))
    report = gateway.run(Options(tmp_path, lambda _: None, runs=1, rows=80))
    for metric in ("added_p50", "added_ttft", "requests_per_s", "requests_per_core_s"):
        assert report.value("tuneline", metric) > 0, metric
    assert report.value("tuneline", "p50") > report.value("direct", "p50")
    # A few milliseconds even on a busy machine; 40 would be Nagle's algorithm on a socket.
    assert report.value("direct", "p50") < 30
    assert report.value("tuneline", "resident") > 10
    assert report.ratios == {}
    # No peer is left out without a word.
    assert [missing.system for missing in report.not_measured] == list(gateway.PEERS)
    assert "requests_per_core_s_vs_ferrogw" in report.not_measured[2].ratios
    # The ledger has every request: warm-up and measured ones, in turn, several at once, as
    # streams, and those that the memory was watched over.
    with closing(sqlite3.connect(tmp_path / "gateway" / "usage.sqlite")) as ledger:
        (billed,) = ledger.execute("SELECT count(*) FROM usage WHERE kind = 'request'").fetchone()
    at_once = sum(n // CONNECTIONS * CONNECTIONS for n in (WARM_UP, 80))
    watched = 80 * gateway.MEMORY_PER_ROW
    assert billed == WARM_UP + 80 + at_once + 2 * STREAMS + watched + watched // 20


def job(server):
    port = server.server_address[1]
    return {
        "url": f"http://127.0.0.1:{port}",
        "key": "k",
        "text": "t",
        "model_id": "m",
        "version": "1",
        "requests": 2,
        "streams_may_fail": True,
    }


class OnlyWhole(BaseHTTPRequestHandler):
    """A gateway that answers, but no stream."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(500 if asked.get("stream") else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def test_a_peer_without_streams_is_measured_for_the_rest_and_ours_is_not_forgiven():
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyWhole) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sample = conduct(requests(job(server)))
        assert sample.scores["p50"] > 0
        assert "ttft" not in sample.scores
        with pytest.raises(RuntimeError, match="answered"):
            conduct(requests({**job(server), "streams_may_fail": False}))
        server.shutdown()


def sample(p50):
    return Sample("1", 10, 1.0, 1.0, 10.0, {"p50": p50, "p99": 9.0, "requests_per_s": 100 / p50})


def test_added_latency_is_of_the_same_round_and_compared_with_litellm():
    samples = {
        "direct": [sample(1.0), sample(5.0), sample(1.0)],
        "tuneline": [sample(2.0), sample(6.5), sample(3.0)],
        "litellm": [sample(7.0), sample(8.0), sample(5.0)],
    }
    results = gateway.request_results(samples)
    added = {r.system: r.value for r in results if r.metric == "added_p50"}
    assert added == {"tuneline": 1.5, "litellm": 4.0}
    assert ratios_of(results, gateway.RATIOS) == {
        "requests_per_s_vs_litellm": pytest.approx(7 / 3, abs=1e-3),
        "added_p50_vs_litellm": 0.375,
    }


def test_a_proxy_that_is_not_there_or_does_not_start_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_PYTHON", str(tmp_path / "python"))
    with pytest.raises(TunelineError, match=r"there is no .*litellm"):
        litellm("http://x", "m", tmp_path)
    for name, text in (("litellm", "echo 'ImportError: no backoff'; exit 1"), ("python", "echo 9")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        os.chmod(tmp_path / name, 0o755)
    with pytest.raises(TunelineError, match="no backoff"), litellm("http://x", "m", tmp_path):
        pass
