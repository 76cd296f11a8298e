"""The benchmark of drift on small sets of a form that it reads."""

import json
import random

import numpy as np
import pytest
from benchmarks.contest.contest import Options
from benchmarks.drift import data_folder, public_cases
from benchmarks.texts.drift_nights import Years

from benchmarks import drift
from tuneline.errors import UserError
from tuneline.governance.drift.bets import Wealth, calibrate

WORDS = "track cancel return refund parcel order invoice card address account today monday".split()


def test_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "YEAR", 5)
    rng = random.Random(1)
    source = tmp_path / "rows.jsonl"
    texts = [f"please {' '.join(rng.choices(WORDS, k=7))}" for _ in range(400)]
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    report = drift.run(Options(tmp_path, lambda _: None, input=source, runs=1))
    assert report.value("tuneline", "detection_5pct_out_of_scope") is not None
    assert report.value("tuneline", "false_alarms_per_window") == 0
    assert report.value("tuneline", "false_alarms_per_year") == 0
    assert report.value("tuneline", "seconds_per_window") < 2
    assert report.workload["unseen"] == 100


def test_missing_sets_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="TUNELINE_BENCH_DATA"):
        public_cases(data_folder(None), 500)
    assert data_folder(tmp_path / "banking77" / "train.csv") == tmp_path


def test_simulated_years_are_those_of_the_watch():
    rng = np.random.default_rng(1)
    tail = calibrate(rng.normal(size=2000), np.empty(0), 0.001)
    years, wealth = Years(3), [Wealth() for _ in range(3)]
    for night in range(30):
        scores = rng.normal(0.1 if night > 20 else 0, 1, size=(3, 100))
        found = years.p_values(tail.log_e(scores), tail.tally(scores), tail.test)
        for purse, row in zip(wealth, scores, strict=True):
            purse.bet(tail.log_e(row), tail.tally(row), tail.test, str(night))
    assert found == pytest.approx([purse.p_value for purse in wealth])
