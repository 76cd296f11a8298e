"""`tuneline score`: one command for bytes on an engine and for an endpoint."""

import json

import pyarrow.parquet as pq
import pytest
from tests.lab.http_server import Handler, serving
from tests.lab.runs import write_dataset
from tests.lab.tiny_task import INTENTS, task_rows

from tuneline.asking.asking import Endpoint
from tuneline.cli import main
from tuneline.config import DeploymentConfig
from tuneline.errors import UserError
from tuneline.evaluation.scoring.command import ScoreTarget, subject_of


@pytest.fixture
def dataset(tmp_path):
    rows = task_rows({"train": 10, "validation": 36, "holdout": 6})
    return write_dataset(tmp_path / "dataset.parquet", rows)


def expert(asked, *, wrong=""):
    """An endpoint that knows the task, but for the questions that hold a word."""

    class Expert(Handler):
        def do_POST(self):
            body = json.loads(self.body())
            asked.append((body["model"], self.headers["Authorization"]))
            text = body["messages"][-1]["content"]
            intent = next(intent for word, intent in INTENTS.items() if word in text)
            said = "none" if wrong and wrong in text else intent
            content = json.dumps({"intent": said, "reply": "We look at it."})
            message = {"role": "assistant", "content": content}
            answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
            self.answer(json.dumps(answer).encode())

    return Expert


def score(model, dataset, out, *more):
    command = ["score", model, "--data", str(dataset), "--out", str(out), "--json"]
    return main([*command, "--label-field", "intent", *more])


def test_an_endpoint_is_scored_with_its_key_and_asked_once(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EXPERT_KEY", "s3cret")
    asked, out = [], tmp_path / "out"
    with serving(expert(asked, wrong="parcel")) as url:
        for _ in range(2):
            key = ("--api-key-env", "EXPERT_KEY")
            assert score(f"{url}/v1#clever", dataset, out, *key) == 0
            found = json.loads(capsys.readouterr().out)
    assert asked == [("clever", "Bearer s3cret")] * 36
    assert (found["rows"], found["value"]) == (36, pytest.approx(2 / 3, abs=1e-4))
    assert [worse["value"] for worse in found["slices_clearly_worse"]] == ["shipping"]
    lines = pq.read_table(out / "answers.parquet").to_pylist()
    assert {line["split"] for line in lines} == {"validation"}
    assert sum(line["model_score"] for line in lines) == 24
    assert json.loads((out / "slices.json").read_text())["judged"]


def test_a_gguf_file_is_served_and_scored(dataset, tmp_path, capsys, tiny_models):
    assert score(str(tiny_models.candidate_gguf), dataset, tmp_path / "out") == 0
    assert json.loads(capsys.readouterr().out)["value"] > 0.6


def asked_for(model, **more):
    settings = {"adapter": None, "api_key_env": None, "deployment": DeploymentConfig()}
    return ScoreTarget(model, **{**settings, **more})


@pytest.mark.parametrize(
    "address", ["http://h:8000#m", "http://h:8000/v1#m", "http://h:8000/v1/#m"]
)
def test_addresses_of_endpoints(address, tmp_path):
    found = subject_of(asked_for(address), tmp_path, print)
    assert isinstance(found, Endpoint)
    assert (found.url, found.model) == ("http://h:8000", "m")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (asked_for("http://h:8000/v1"), "name the model behind the endpoint"),
        (asked_for("http://h#m", api_key_env="NOT_SET_AT_ALL"), "the variable is not set"),
        (asked_for("there/is/none.gguf"), "does not exist; name a GGUF file"),
    ],
)
def test_faults_of_the_user(asked, why, tmp_path):
    with pytest.raises(UserError, match=why):
        subject_of(asked, tmp_path, print)


def test_a_split_without_rows_is_said(tmp_path, capsys):
    path = write_dataset(tmp_path / "d.parquet", task_rows({"train": 3}))
    assert score("http://h#m", path, tmp_path / "out") == 2
    assert "has no validation row" in capsys.readouterr().err
