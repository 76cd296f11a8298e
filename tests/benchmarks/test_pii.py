import json

import pytest
from benchmarks.contest import contest
from benchmarks.contest.contest import Options
from benchmarks.contest.trial import conduct, write_lines
from benchmarks.workloads.labelled_text import (
    NAMED,
    SHAPED,
    Span,
    detection_scores,
    make_labelled,
    read_labelled,
)

from benchmarks import pii
from tuneline.errors import UserError

TEXT = "Write to ann@post.example or to Ann."
MAIL = Span(9, 25, "EMAIL_ADDRESS")
NAME = Span(32, 35, "PERSON")
ROWS = [{"text": TEXT, "spans": [list(MAIL), list(NAME)]}, {"text": "Where is it?", "spans": []}]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    rows = write_lines(tmp_path_factory.mktemp("pii") / "rows.jsonl", make_labelled(300))
    return {"rows": rows, "labelled": True}


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


@pytest.mark.parametrize("labelled", [True, False])
def test_a_peer_that_is_not_installed_is_named_with_its_ratio(tmp_path, monkeypatch, labelled):
    monkeypatch.setattr(contest, "why_missing", lambda module, python: f"no {module}")
    source = None
    if not labelled:
        source = tmp_path / "rows.jsonl"
        source.write_text('{"text": "Call me on 212-555-0142."}\n' * 30)
    report = pii.run(Options(tmp_path, lambda _: None, input=source, runs=1, rows=60))
    assert report.ratios == {}
    reasons = {m.system: (m.reason, m.ratios) for m in report.not_measured}
    assert reasons[pii.NO_NER] == ("no presidio_analyzer", ("docs_per_s_vs_presidio_no_ner",))
    assert reasons[pii.NER] == ("no presidio_analyzer", ("docs_per_s_vs_presidio_ner",))
    assert report.value(pii.PATTERNS, "docs_per_s") > 0
    assert ("recall and precision" in reasons) is not labelled
    assert (report.value(pii.PATTERNS, "recall") or 0) > (0.8 if labelled else -1)


def test_labels_are_where_the_values_are():
    rows = make_labelled(800)
    assert rows == make_labelled(800)
    spans = [(row, Span(*span)) for row in rows for span in row["spans"]]
    assert len(spans) == 400
    assert {span.entity for _, span in spans} == {*SHAPED, *NAMED}
    for row, span in spans:
        value = row["text"][span.start : span.end]
        assert value == value.strip() != ""
        if span.entity == "EMAIL_ADDRESS":
            assert "@" in value or "at" in value.lower()
        if span.entity == "US_SSN":
            assert sum(char.isdigit() for char in value) == 9
    lower = [s for r, s in spans if s.entity == "PERSON" and r["text"] == r["text"].lower()]
    assert len(lower) >= 8


def test_a_perfect_detector_scores_one_and_each_fault_costs():
    both = (*SHAPED, *NAMED)
    perfect = detection_scores(ROWS, [[MAIL, NAME], []], both)
    assert perfect["recall"] == perfect["precision"] == perfect["recall_PERSON"] == 1.0
    missed = detection_scores(ROWS, [[MAIL], []], both)
    assert (missed["recall"], missed["recall_PERSON"], missed["precision"]) == (0.5, 0.0, 1.0)
    alarm = detection_scores(ROWS, [[MAIL, NAME], [Span(0, 5, "PERSON")]], both)
    assert alarm["precision"] == pytest.approx(2 / 3)
    # Half an address is not found, most of it is.
    assert detection_scores(ROWS, [[Span(9, 17, "EMAIL_ADDRESS")], []], SHAPED)["recall"] == 0.0
    assert detection_scores(ROWS, [[Span(9, 24, "EMAIL_ADDRESS")], []], SHAPED)["recall"] == 1.0


def test_files_with_and_without_labels_and_broken_ones(tmp_path):
    path, rows = tmp_path / "set.json", tmp_path / "rows.jsonl"
    span = {"entity_type": "GPE", "start_position": 0, "end_position": 5}
    path.write_text(json.dumps([{"full_text": "Paris is far", "spans": [span]}]))
    expected = [{"text": "Paris is far", "spans": [[0, 5, "LOCATION"]]}]
    assert read_labelled(path, None) == (expected, True)
    rows.write_text('{"text": "hello"}\n')
    assert read_labelled(rows, None) == ([{"text": "hello", "spans": []}], False)
    rows.write_text('{"text": "hello", "spans": [{"start": 0}]}\n')
    with pytest.raises(UserError, match="row 1"):
        read_labelled(rows, None)


def test_extraction_scores_see_what_leaks_is_torn_and_is_changed():
    from benchmarks.faults.extraction_rows import make_extraction, scrubbing_scores

    rows = make_extraction(40)
    same = scrubbing_scores(rows, [row["messages"] for row in rows])
    assert (same["leak"], same["torn"], same["harmless_changed"]) == (1, 0, 0)
    changed = [
        [{"content": "gone"}, {"content": json.dumps(dict.fromkeys(row["values"], "other"))}]
        for row in rows
    ]
    other = scrubbing_scores(rows, [*changed[:-1], None])
    assert (other["leak"], other["torn"], other["harmless_changed"]) == (0, 1, 1)
    assert other["rejected"] == 1 / 40
