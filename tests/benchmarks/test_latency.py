import pytest
from benchmarks.contest.options import Options
from benchmarks.contest.peers import bench_python, why_missing
from benchmarks.latency import GUIDELLM, OURS, run
from benchmarks.serving.client_trials import Seen, scores


def test_what_a_client_adds_is_its_mean_minus_the_servers():
    seen = [Seen(52.0, 10.0, 362.0), Seen(54.0, 10.5, 378.0)]
    server = [Seen(51.0, 10.0, 361.0), Seen(52.0, 10.2, 368.0)]
    found = scores(seen, server)
    assert found["ttft"] == 53.0
    assert found["added_ttft"] == pytest.approx(1.5)
    assert found["added_latency"] == pytest.approx(5.5)


def test_requests_that_the_server_did_not_see_are_no_measurement():
    with pytest.raises(RuntimeError, match="timed 2 requests, the server 1"):
        scores([Seen(1, 1, 1)] * 2, [Seen(1, 1, 1)])


def test_our_client_sees_what_the_server_did(tmp_path):
    report = run(Options(tmp_path, lambda _: None, runs=1, rows=32))
    # Times count on both sides of one clock: no client is ahead of its server.
    assert report.value(OURS, "ttft") >= 50
    assert report.value(OURS, "added_latency") > 0
    assert report.value(OURS, "tpot") >= 9


@pytest.mark.long
@pytest.mark.skipif(
    why_missing(GUIDELLM, bench_python()) is not None,
    reason="guidellm is not installed in the environment of the peers",
)
def test_ttft_and_tpot_are_those_of_guidellm(tmp_path):
    report = run(Options(tmp_path, lambda _: None))
    # guidellm's own client adds some 5 ms to the 50 of the server, so that less than its TTFT is
    # nearer to the truth; below the truth is no client.
    truth = report.value(OURS, "ttft") - report.value(OURS, "added_ttft")
    assert 50 <= truth <= report.value(OURS, "ttft") <= 1.05 * report.value(GUIDELLM, "ttft")
    assert report.value(OURS, "added_ttft") <= report.value(GUIDELLM, "added_ttft")
    assert report.ratios["tpot_vs_guidellm"] == pytest.approx(1, abs=0.05)
