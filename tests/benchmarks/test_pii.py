import pytest
from benchmarks.contest.contest import Options
from benchmarks.contest.trial import conduct
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.labelled_text import make_labelled

from benchmarks import pii


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    rows = write_lines(tmp_path_factory.mktemp("pii") / "rows.jsonl", make_labelled(300))
    return {"rows": rows, "labelled": True, "model": pii.MODEL, "batch": pii.BATCH}


@pytest.mark.parametrize(
    ("trial", "least"),
    [
        (pii.tuneline_patterns, 0.9),
        (pii.presidio_patterns, 0.5),
        (pii.tuneline_recogniser, 0.8),
        (pii.presidio_recogniser, 0.5),
    ],
)
def test_each_system_finds_labelled_data(job, trial, least):
    sample = conduct(trial(job))
    assert sample.items == 300
    assert sample.scores["recall"] >= least
    assert sample.scores["precision"] > 0.5
    named = trial in (pii.tuneline_recogniser, pii.presidio_recogniser)
    assert ("recall_PERSON" in sample.scores) == named


def test_a_detector_that_finds_nothing_has_no_recall(job, monkeypatch):
    monkeypatch.setattr("tuneline.data.pii.find.detector.Detector.shapes", lambda _, text: ())
    assert conduct(pii.tuneline_patterns(job)).scores["recall"] == 0.0


def test_a_peer_that_is_not_installed_is_named_with_its_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(pii, "why_missing", lambda module: f"no {module}")
    report = pii.run(Options(tmp_path, lambda _: None, runs=1, rows=60))
    assert report.value(pii.PATTERNS, "recall") > 0.8
    assert report.ratios == {}
    reasons = {m.system: (m.reason, m.ratios) for m in report.not_measured}
    assert reasons[pii.NO_NER] == ("no presidio_analyzer", ("docs_per_s_vs_presidio_no_ner",))
    assert reasons[pii.NER] == ("no presidio_analyzer", ("docs_per_s_vs_presidio_ner",))


def test_rows_without_labels_give_speed_and_say_that_there_is_no_recall(tmp_path, monkeypatch):
    monkeypatch.setattr(pii, "why_missing", lambda module: f"no {module}")
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "Call me on 212-555-0142."}\n' * 30)
    report = pii.run(Options(tmp_path, lambda _: None, input=source, runs=1))
    assert report.value(pii.PATTERNS, "docs_per_s") > 0
    assert report.value(pii.PATTERNS, "recall") is None
    assert "recall and precision" in [m.system for m in report.not_measured]
