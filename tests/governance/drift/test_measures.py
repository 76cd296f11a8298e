"""Drift: prompts of the same kind are not called drift, others are."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneline.errors import UserError
from tuneline.governance.drift.measures import Baseline, compare
from tuneline.governance.drift_detection import compare_files, read_logs

VERBS = "track cancel return refund find change delay lose damage send open pay".split()
THINGS = "parcel order invoice card address account voucher box label receipt".split()
TIMES = "today yesterday on monday last week this morning since friday at noon".split()
OTHER = "boil roast quantum galaxy violin mountain tiger sonata glacier orchid lava comet".split()


def _prompt(rng, words=(VERBS, THINGS, TIMES)):
    verbs, things, times = words
    return (
        f"can you {rng.choice(verbs)} my {rng.choice(things)} and the {rng.choice(things)} "
        f"{rng.choice(times)} because i {rng.choice(verbs)} it?"
    )


def _foreign(rng):
    return " ".join(rng.choice(OTHER) for _ in range(rng.randint(3, 25)))


def _baseline(rng):
    return Baseline([_prompt(rng) for _ in range(300)], [_prompt(rng) for _ in range(100)])


def test_no_false_alarm_over_twenty_seeds():
    alarms = 0
    for seed in range(20):
        rng = random.Random(seed)
        measures = compare(_baseline(rng), [_prompt(rng) for _ in range(80)], 0.01, seed)
        alarms += any(m.drifted for m in measures)
    # At p < 0.01 two or more of twenty come by chance once in sixty times; the seeds are fixed.
    assert alarms <= 1


def test_foreign_prompts_are_drift():
    rng = random.Random(1)
    window = [_prompt(rng) for _ in range(50)] + [_foreign(rng) for _ in range(30)]
    assert any(m.drifted for m in compare(_baseline(rng), window, 0.01))


def test_longer_prompts_of_the_same_words_are_drift():
    rng = random.Random(2)
    window = [_prompt(rng) + " " + _prompt(rng) for _ in range(80)]
    measures = {m.name: m for m in compare(_baseline(rng), window, 0.01)}
    assert measures["length_psi"].drifted


@pytest.fixture
def reference(tmp_path):
    rng = random.Random(3)
    splits = ["train"] * 300 + ["validation"] * 60 + ["holdout"] * 60
    rows = [
        {"messages": [{"role": "user", "content": _prompt(rng)}], "split": split}
        for split in splits
    ]
    path = tmp_path / "dataset.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _write_logs(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_names_the_day_since_when(reference, tmp_path):
    rng = random.Random(4)
    rows = []
    for day in range(1, 5):
        for n in range(40):
            prompt = _prompt(rng) if day < 3 else _foreign(rng)
            rows.append({"timestamp": f"2026-01-0{day}T10:00:{n:02d}Z", "prompt": prompt})
    report = compare_files(str(reference), _write_logs(tmp_path / "log.jsonl", rows))
    assert report["drifted"]
    assert report["since"] == "2026-01-03"
    assert {"name", "value", "p_value", "limit", "drifted"} == set(report["measures"][0])


def test_the_command_sees_no_drift_in_messages_of_the_same_kind(reference, tmp_path):
    rng = random.Random(5)
    rows = [{"messages": [{"role": "user", "content": _prompt(rng)}]} for _ in range(60)]
    report = compare_files(reference.as_uri(), _write_logs(tmp_path / "log.jsonl", rows))
    assert report["drifted"] is False
    assert report["since"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1: expected a JSON object"),
        ('{"prompt": "a"}\n[1]\n', "line 2: expected"),
        ("nonsense\n", "line 1"),
        ('{"prompt": "a"}\n', "has 1 prompts; at least 20"),
    ],
)
def test_bad_logs_are_named(tmp_path, text, message):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_logs(path)


def test_missing_files_are_named(tmp_path, reference):
    with pytest.raises(UserError, match="does not exist"):
        compare_files(str(tmp_path / "no.parquet"), tmp_path / "x")
    with pytest.raises(UserError, match="does not exist"):
        compare_files(str(reference), tmp_path / "x")
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"a": [1]}), wrong)
    with pytest.raises(UserError, match="not a dataset"):
        compare_files(str(wrong), tmp_path / "x")
