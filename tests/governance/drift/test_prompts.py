"""Logs and datasets: read by day and by split, hold-out left alone, bad lines named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import write_jsonl
from tests.lab.runs import dataset_rows, exchange, write_dataset

from tuneline.errors import UserError
from tuneline.governance.drift.prompts import UNDATED, read_logs, read_reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1: expected a JSON object"),
        ('{"prompt": "a"}\n[1]\n', "line 2: expected"),
        ('{"prompt": 7}\n', "line 1: expected"),
        ('{"prompt": "a"}\n', "has 1 prompts; at least 20"),
    ],
)
def test_bad_logs_are_named(tmp_path, text, message):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_logs(path)


def test_lines_of_the_gateway_without_text_are_kept(tmp_path):
    redacted = {"timestamp": "2026-01-02T10:00:00Z", "request_id": "r", "redaction_failed": True}
    days = read_logs(write_jsonl(tmp_path / "log.jsonl", [{"prompt": "hello"}] * 20 + [redacted]))
    assert [len(days[day]) for day in (UNDATED, "2026-01-02")] == [20, 1]
    assert days["2026-01-02"][0].text is None
    assert days["2026-01-02"][0].line == 21


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"label": "billing"}, "billing"),
        ({"completion": " login "}, "login"),
        ({"completion": json.dumps({"intent": "login", "reply": "We look."})}, "login"),
        ({"completion": "We look at your login."}, None),
        ({}, None),
    ],
)
def test_the_label_of_an_answer(tmp_path, row, label):
    rows = [{"prompt": "hello", "mean_logprob": -0.5, "fallback_reason": None, **row}] * 20
    days = read_logs(write_jsonl(tmp_path / "log.jsonl", rows), ["billing", "login"])
    prompt = days[UNDATED][0]
    assert (prompt.label, prompt.logprob, prompt.fallback) == (label, -0.5, False)


def test_hold_out_rows_are_not_read(tmp_path):
    sizes = {"train": 20, "validation": 3, "holdout": 9}
    rows = dataset_rows(sizes, lambda n: (exchange(f"question {n}", "x"), "x"))
    found = read_reference(write_dataset(tmp_path / "dataset.parquet", rows))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "validation": 3}


def test_other_files_are_refused(tmp_path):
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"a": [1]}), wrong)
    with pytest.raises(UserError, match="not a dataset"):
        read_reference(wrong)
    with pytest.raises(UserError, match="does not exist"):
        read_logs(tmp_path / "none.jsonl")
