"""The memory benchmark predicts and measures the same rows, and reports both."""

from benchmarks.contest.options import Options
from benchmarks.contest.trial import Sample
from benchmarks.memory import CASES, Case, make_rows

from benchmarks import memory


def test_rows_have_the_shape_and_share_no_beginning():
    rows = make_rows(Case(4, 50, 20), 1)
    assert [len(row.ids) for row in rows] == [50] * 4
    assert [row.targets for row in rows] == [20] * 4
    assert len({row.ids[0] for row in rows}) > 1


def test_at_least_three_shapes_with_and_without_checkpointing_and_4bit():
    assert len({case.name for case in CASES}) == len(CASES) >= 3
    for trait in ("checkpointing", "qlora"):
        assert {getattr(case, trait) for case in CASES} == {True, False}


def test_the_report_has_both_peaks_and_their_ratio(tmp_path, monkeypatch):
    gib = float(1 << 30)

    def measure(self, systems, job, runs):
        assert runs == 3
        sample = Sample("2.0", 2, 1.0, 1.0, 100.0, {"predicted": 1.1 * gib, "measured": gib})
        return {system.name: [sample] * runs for system in systems}

    class Base:
        path = tmp_path

    monkeypatch.setattr(memory.Contest, "measure", measure)
    monkeypatch.setattr("tuneline.models.resolve", lambda uri, log: Base)
    report = memory.run(Options(tmp_path, lambda line: None, runs=3))
    assert report.value("8 × 234", "predicted_peak") == 1.1
    assert report.value("8 × 234", "measured_peak") == 1.0
    assert report.ratios["predicted_over_measured 8 × 234"] == 1.1
    assert len(report.ratios) == len(CASES)
