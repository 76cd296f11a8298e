import json

import pytest
from benchmarks.workloads.labelled_text import (
    NAMED,
    SHAPED,
    Span,
    detection_scores,
    make_labelled,
    read_labelled,
)

from tuneline.errors import UserError

TEXT = "Write to ann@post.example or to Ann."
MAIL = Span(9, 25, "EMAIL_ADDRESS")
NAME = Span(32, 35, "PERSON")
ROWS = [{"text": TEXT, "spans": [list(MAIL), list(NAME)]}, {"text": "Where is it?", "spans": []}]


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


def test_files_of_presidio_research_are_read(tmp_path):
    path = tmp_path / "set.json"
    span = {"entity_type": "GPE", "start_position": 0, "end_position": 5}
    path.write_text(json.dumps([{"full_text": "Paris is far", "spans": [span]}]))
    assert read_labelled(path, None) == (
        [{"text": "Paris is far", "spans": [[0, 5, "LOCATION"]]}],
        True,
    )


def test_rows_without_labels_and_broken_labels(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "hello"}\n')
    assert read_labelled(path, None) == ([{"text": "hello", "spans": []}], False)
    path.write_text('{"text": "hello", "spans": [{"start": 0}]}\n')
    with pytest.raises(UserError, match="row 1"):
        read_labelled(path, None)
