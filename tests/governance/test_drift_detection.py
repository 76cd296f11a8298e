"""drift_detection: a detector that tells foreign prompts from its own passes; others are caught."""

import pytest
from tests.lab.runs import broken, dataset_rows, exchange, value
from tests.lab.tiny_task import conversation, task_rows

from tuneline.governance import drift_detection
from tuneline.governance.drift import measures
from tuneline.harness.general_questions import Question

SPLITS = {"train": 240, "validation": 40, "holdout": 40}


@pytest.fixture
def drift_lab(make_lab):
    """Make a run with a dataset of the tiny task, or of the given rows."""

    def make(rows=None):
        lab = make_lab()
        lab.leave_dataset(rows or task_rows(SPLITS))
        return lab

    return make


def test_a_detector_that_sees_foreign_prompts_only_passes(drift_lab):
    lab = drift_lab()
    evidence = lab.execute("drift_detection")
    assert evidence.verdict == "pass"
    assert "validation prompts are not called drift" in evidence.summary
    assert "foreign prompts are called drift" in evidence.summary
    assert value(evidence, "foreign_novelty_share_p") < 0.01
    baseline = lab.document("drift_detection", "baseline.json")
    assert baseline["schema"] == "tuneline/drift-baseline/1"
    assert {split: len(prompts) for split, prompts in baseline["prompts"].items()} == SPLITS
    trial = lab.document("drift_detection", "trial.json")
    assert [m["drifted"] for m in trial["validation"]] == [False] * 3
    assert any(m["drifted"] for m in trial["foreign"])


def test_a_blind_detector_fails(drift_lab, monkeypatch):
    """Every measure sees nothing, whatever the prompts are."""
    for name in ("novelty", "mmd_test", "psi_test"):
        monkeypatch.setattr(measures, name, lambda *_: (0.0, 1.0))
    evidence = drift_lab().execute("drift_detection")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"foreign_called_drift"}
    assert "foreign prompts are not called drift" in evidence.summary


def test_prompts_of_the_same_distribution_are_not_foreign(drift_lab, monkeypatch):
    """The foreign prompts are drawn from the task itself: what is called drift must be real."""
    alike = [
        Question(str(n), "task", conversation(5000 + n)[0][1]["content"], {}, 8) for n in range(60)
    ]
    monkeypatch.setattr(drift_detection, "load_questions", lambda: alike)
    evidence = drift_lab().execute("drift_detection")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"foreign_called_drift"}


@pytest.mark.parametrize("measure", ["novelty", "mmd_test", "psi_test"])
def test_a_false_alarm_of_any_measure_fails(drift_lab, monkeypatch, measure):
    monkeypatch.setattr(measures, measure, lambda *_: (1.0, 0.0))
    evidence = drift_lab().execute("drift_detection")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"validation_called_drift"}
    assert "called drift (a false alarm)" in evidence.summary


def test_a_validation_split_of_other_questions_fails(drift_lab):
    """Real drift between the splits: the detector is right, the dataset is not one distribution."""
    other = dataset_rows(
        {"validation": 40},
        lambda n: (exchange(f"Who painted the {n}th ceiling of the chapel, and when?", "x"), "x"),
    )
    rows = [row for row in task_rows(SPLITS) if row["split"] != "validation"] + other
    evidence = drift_lab(rows).execute("drift_detection")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"validation_called_drift"}


def test_too_few_prompts_warn(drift_lab):
    lab = drift_lab(task_rows({"train": 60, "validation": 10, "holdout": 30}))
    evidence = lab.execute("drift_detection")
    assert evidence.verdict == "warn"
    assert broken(evidence) == {"smallest_window"}
    assert value(evidence, "smallest_window") == 10
    assert lab.artifact("drift_detection", "baseline.json").is_file()
