"""Files of models: what they may say, and how a wrong one is told apart from the others."""

import pytest

from tuneline.config import find_model, models
from tuneline.errors import UserError

GOOD = """
description: Support
owners: [support-ml]
approvers: [alice]
settings:
  data: {source: s3://bucket/support.jsonl}
  training: {epochs: 3}
nightly: {schedule: "0 2 * * *", warm_start: true}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_MODELS", str(tmp_path))
    return tmp_path


def test_without_a_file_there_is_one_model_without_schedules(folder):
    (only,) = models()
    assert (only.name, only.suffix, only.file_name) == ("support-intents", "", None)
    assert only.file.logs.schedule is only.file.nightly.schedule is None


def test_each_file_is_a_model_whose_ids_end_in_its_name(folder):
    (folder / "faq.yaml").write_text(GOOD)
    assert [(m.name, m.suffix) for m in models()] == [("faq", "__faq")]
    (folder / "billing.v2.yaml").write_text(GOOD)
    assert [m.suffix for m in models()] == ["__billing.v2", "__faq"]
    config = find_model("faq").config()
    assert (config.name, config.training.epochs) == ("faq", 3)
    assert config.training.r == 16  # of the preset
    with pytest.raises(UserError, match=r"no model 'fax'.*faq"):
        find_model("fax")


def test_a_changed_file_is_read_again(folder):
    path = folder / "faq.yaml"
    path.write_text(GOOD)
    assert models()[0].file.description == "Support"
    path.write_text(GOOD.replace("Support", "Questions"))
    assert models()[0].file.description == "Questions"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("owner: [x]", "owner: there is no such setting; did you mean owners?"),
        ("nightly: {schedule: nightly}", "nightly.schedule: expected a cron expression"),
        ("settings: {name: other}", "settings.name: the file's name is the model's"),
        ("preset: huge", "there is no preset 'huge'"),
        ("settings: {training: fast}", "training: expected settings"),
        (
            "settings: {data: {source: x.jsonl}, training: {epoch: 2}}",
            "training.epoch: there is no such setting; did you mean epochs?",
        ),
        ("owners: []", "owners: "),
        ("logs: {schedule: null}", "set logs.schedule, or drift.retrain: false"),
        ("drift: {cool_down_days: -1}", "drift.cool_down_days"),
        ("- a list", "expected `key: value` lines"),
        ("a: [", "not valid YAML"),
        ("settings: {}\nowner: a\nsettings: {}", "line 3: not valid YAML: the key settings stands"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_and_leaves_the_others(folder, text, said):
    (folder / "faq.yaml").write_text(GOOD)
    (folder / "wrong.yaml").write_text(text)
    good, wrong = models()
    assert good.problem is None
    assert said in wrong.problem
    assert "wrong.yaml" in wrong.problem
    with pytest.raises(UserError, match=r"wrong\.yaml"):
        find_model("wrong")


def test_a_name_that_no_release_can_have_is_refused(folder):
    (folder / "My Model.yaml").write_text(GOOD)
    (only,) = models()
    assert "a model is named by its file" in only.problem


def test_a_model_without_data_has_no_configuration(folder):
    (folder / "faq.yaml").write_text("description: no data yet")
    with pytest.raises(UserError, match="name the data"):
        find_model("faq").config()
