"""What training leaves is read back as it was written, also by and from other versions."""

import math

from tuneline.artifacts.training import (
    CHECKPOINTS,
    TRAINED,
    Checkpoints,
    Evaluation,
    TrackedRun,
    TrainedRun,
    Trip,
)


def test_a_loss_that_is_not_a_number_survives_json():
    checkpoints = Checkpoints(best_step=0, evaluations=[Evaluation(step=0, eval_loss=math.nan)])
    text = checkpoints.model_dump_json()
    assert '"eval_loss":"nan"' in text
    assert math.isnan(CHECKPOINTS.model.model_validate_json(text).losses[0])


def test_rules_and_trackers_come_back_as_they_were():
    stopped = Trip("plateau", 9, 3, 3, "the validation loss has not fallen in 3 passes")
    tracked = TrackedRun("mlflow", "online", "1", "http://127.0.0.1:5000/#/1", key="k")
    trained = TrainedRun(steps=9, stopped=stopped, tracking=[tracked])
    text = trained.model_dump_json()
    assert '"value":3' in text
    assert TRAINED.model.model_validate_json(text) == trained


def test_fields_of_another_version_are_left_aside():
    old = '{"steps": 4, "stopped": null, "tracking": [], "a_field_of_another_version": 1}'
    assert TRAINED.model.model_validate_json(old).steps == 4
