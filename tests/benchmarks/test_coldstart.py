import pytest
from benchmarks.coldstart import COLD, WARMED, run, start_results
from benchmarks.contest.contest import Options

from tuneline.deployment.cold_start import Start, WarmStart
from tuneline.errors import TunelineError

START = Start(load_seconds=1.0, first_ttft=0.8, later_ttft=0.2, failed=0)
WARM = WarmStart(
    seen_unready=True,
    warm_when_ready=True,
    ready_seconds=2.0,
    first_ttft=0.2,
    later_ttft=0.1,
    failed=0,
)


def test_medians_of_both_kinds_of_start():
    found = {(r.system, r.metric): r.value for r in start_results([START] * 3, [WARM] * 3, "1")}
    assert found[COLD, "first_ttft"] == 0.8
    assert found[WARMED, "first_ttft"] == 0.2
    assert found[WARMED, "seconds_to_ready"] == 2.0


def test_a_failed_request_or_a_start_that_was_not_warm_is_no_measurement():
    with pytest.raises(TunelineError, match="failed"):
        start_results([Start(1.0, 0.8, 0.2, 1)], [WARM], "1")
    with pytest.raises(TunelineError, match="warm"):
        start_results([START], [WarmStart(True, False, 2.0, 0.2, 0.1, 0)], "1")


@pytest.mark.model
def test_real_servers_start_cold_and_warm(tmp_path):
    report = run(Options(tmp_path, lambda _: None, runs=1))
    assert 0 < report.value(WARMED, "first_ttft") < 10
    assert report.value(COLD, "later_ttft") > 0
    assert report.value(WARMED, "seconds_to_ready") > 0
    assert report.ratios["first_ttft_cold_over_warmed"] > 0
