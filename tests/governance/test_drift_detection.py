"""drift_detection: a detector that tells foreign prompts from its own passes; others are caught."""

import json
import random

import numpy as np
import pytest
from tests.lab.data_runs import write_jsonl
from tests.lab.runs import baseline, broken, dataset_rows, exchange, value, write_dataset
from tests.lab.tiny_task import conversation, task_rows

from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.drift import rehearsal, watch
from tuneline.governance.drift.signals import Look
from tuneline.governance.drift_detection import PLANTS, compare_files

SPLITS = {"train": 600, "validation": 80, "holdout": 40}


@pytest.fixture
def drift_lab(make_lab):
    """Make a run with a dataset of the tiny task, or of the given rows."""

    def make(rows=None):
        lab = make_lab({"data": {"pii_ner": False}})
        lab.leave_scrubbed()
        lab.leave_dataset(rows or task_rows(SPLITS))
        return lab

    return make


def see(p_value):
    """A detector that sees the same in every night."""

    def look(reference, night, first):
        tally, test = np.array([1, 1]), lambda _: np.array(p_value)
        return [("novelty_share", Look(0.5, np.zeros(3), tally, test, []))]

    return look


def test_a_detector_that_sees_foreign_prompts_only_passes(drift_lab):
    lab = drift_lab(task_rows({"train": 1200, "validation": 300, "holdout": 40}))
    evidence = lab.execute("drift_detection")
    assert evidence.verdict == "pass"
    assert "validation prompts are not called drift" in evidence.summary
    assert "foreign prompts are called drift" in evidence.summary
    called = [value(evidence, f"planted_{plant}_share_called") for plant in PLANTS]
    assert called == [0.1, 0.1, 0.4]
    assert "10% of foreign requests in a night of 108 is seen in 90 % of nights" in evidence.summary
    stored = lab.document("drift_detection", "baseline.json")
    assert stored["schema"] == "tuneline/drift-baseline/2"
    sizes = {split: len(prompts) for split, prompts in stored["prompts"].items()}
    assert sizes == {"train": 1200, "validation": 300}
    trial = lab.document("drift_detection", "trial.json")
    assert not any(m["drifted"] for m in trial["validation"])
    assert any(m["drifted"] for m in trial["foreign"])
    assert {one["plant"] for one in trial["planted"]} == {"nothing", *PLANTS}


def test_data_that_can_not_show_the_required_power_are_inconclusive(drift_lab):
    evidence = drift_lab().execute("drift_detection")
    assert evidence.verdict == "inconclusive"
    assert {"planted_foreign_share_called"} <= broken(evidence)
    assert value(evidence, "planted_foreign_share_called") == 0.2
    assert "20% of foreign requests in a night of" in evidence.summary


@pytest.mark.parametrize(
    ("p_value", "names", "said"),
    [
        (1.0, {"foreign_called_drift", *(f"planted_{plant}_share_called" for plant in PLANTS)},
         "of foreign requests in a night of 100 is not shown to be seen in 90 % of nights"),
        (1e-12, {"validation_called_drift", "clean_nights_called"}, "called drift (a false alarm)"),
    ],
)  # fmt: skip
def test_a_detector_that_is_blind_or_always_calls_fails(
    drift_lab, monkeypatch, p_value, names, said
):
    for module in (watch, rehearsal):
        monkeypatch.setattr(module, "look", see(p_value))
    evidence = drift_lab().execute("drift_detection")
    assert evidence.verdict == "fail"
    assert names <= broken(evidence)
    assert said in evidence.summary


def test_a_validation_split_that_ends_in_other_questions_fails(drift_lab):
    """Real drift within a split: the detector is right, the dataset is not one distribution."""
    other = dataset_rows(
        {"validation": 40},
        lambda n: (exchange(f"Who painted the {n}th ceiling of the chapel, and when?", "x"), "x"),
    )
    evidence = drift_lab([*task_rows({"train": 600, "validation": 40}), *other]).execute(
        "drift_detection"
    )
    assert evidence.verdict == "fail"
    assert "validation_called_drift" in broken(evidence)


def test_too_few_prompts_of_training_are_refused(drift_lab):
    with pytest.raises(UserError, match="12 training prompts; at least 20 are needed"):
        drift_lab(task_rows({"train": 12, "validation": 60})).execute("drift_detection")


def test_too_few_prompts_are_inconclusive(drift_lab):
    lab = drift_lab(task_rows({"train": 60, "validation": 10, "holdout": 30}))
    evidence = lab.execute("drift_detection")
    assert evidence.verdict == "inconclusive"
    assert broken(evidence) == {"smallest_window"}
    assert value(evidence, "smallest_window") == 10
    assert lab.artifact("drift_detection", "baseline.json").is_file()


def _question(rng):
    return conversation(rng.randrange(10_000, 99_999))[0][1]["content"]


@pytest.fixture
def reference(tmp_path):
    """A baseline of the tiny task, in which patterns alone look for personal data."""
    path = tmp_path / "baseline.json"
    path.write_text(baseline(write_dataset(tmp_path / "dataset.parquet", task_rows(SPLITS))))
    return path


def dated(day, prompts):
    return [{"timestamp": f"2026-01-{day:02d}T10:00:00Z", "prompt": text} for text in prompts]


def test_the_command_names_the_day_since_when(reference, tmp_path, capsys):
    rng = random.Random(4)
    rows = []
    for day in range(1, 9):
        asked = [_question(rng) for _ in range(60)]
        asked[::3] = (
            [f"How do I boil egg number {n}?" for n in range(20)] if day > 5 else asked[::3]
        )
        rows += dated(day, asked)
    state, plot = tmp_path / "state.json", tmp_path / "watch.svg"
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    files = ["drift", "--reference", str(reference), "--logs", str(log)]
    assert main([*files, "--state", str(state), "--plot", str(plot), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["drifted"], report["since"]) == (True, "2026-01-06")
    assert {"name", "value", "p_value", "limit", "drifted"} <= set(report["measures"][0])
    assert all("egg" in d["text"] for d in report["drivers"]["novelty_share"])
    assert "<svg" in plot.read_text()
    assert len(json.loads(state.read_text())["history"]) == 8
    later = dated(9, [_question(rng) for _ in range(30)])
    again = compare_files(str(reference), write_jsonl(tmp_path / "later.jsonl", later), state=state)
    assert (again["since"], len(again["nights"])) == ("2026-01-06", 9)
    # A day that was seen is not looked at again.
    with pytest.raises(UserError, match="has seen every day"):
        compare_files(str(reference), tmp_path / "later.jsonl", state=state)
    plot = tmp_path / "p.png"
    files[-1] = str(tmp_path / "later.jsonl")
    assert main([*files, "--plot", str(plot), "--alarms", "0.01"]) == 0
    assert capsys.readouterr().out.startswith("no drift\n")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_placeholders_of_a_log_are_no_drift_from_a_dataset_with_numbers(tmp_path):
    rows, rng = task_rows({"train": 200, "validation": 40}), random.Random(3)
    for number, row in enumerate(rows):
        row["messages"][1]["content"] += f" call me on 07700 900{number:03}"
    asked = [f"{_question(rng)} call me on [PHONE_NUMBER]" for _ in range(60)]
    log = write_jsonl(tmp_path / "log.jsonl", dated(1, asked))
    reference = write_dataset(tmp_path / "dataset.parquet", rows)
    assert not compare_files(str(reference), log)["drifted"]


def test_wrong_use_of_the_command_is_named(tmp_path, reference, capsys):
    files = ["drift", "--reference", str(reference), "--logs", str(reference)]
    assert [main([*files, *wrong]) for wrong in (["--alarms", "2"], ["--plot", "p.pdf"])] == [2, 2]
    told = capsys.readouterr().err
    assert "between 0 and 1" in told
    assert "must end in .svg or .png" in told
    state = tmp_path / "state.json"
    state.write_text("[]")
    wrong = {"does not exist": None, "can't be read as the state": state}
    for why, known in wrong.items():
        with pytest.raises(UserError, match=why):
            compare_files(str(reference), tmp_path / "x", state=known)
