"""The question for labels of production rows: shown with a form, put aside, asked again."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, TaskAwaitingInput
from tests.lab.tasks import context_of

from tuneline.config import DataConfig
from tuneline.governance.production import labels
from tuneline.store import open_store
from tuneline_airflow import people

ROWS = [
    labels.ReviewRow(
        f"req-{n}",
        "2026-03-04",
        [{"role": "user", "content": f"question {n}"}],
        "answer",
        "random",
        1.0,
        [],
        DataConfig(source="x"),
    )
    for n in range(3)
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    uri = (tmp_path / "store").as_uri()
    model = SimpleNamespace(file=SimpleNamespace(approvers=[]))
    monkeypatch.setattr(people, "store_uri", lambda: uri)
    monkeypatch.setattr(people, "find_model", lambda _: model)
    monkeypatch.setattr(labels, "review_rows", lambda *_: iter(ROWS))
    return open_store(uri)


def operator():
    return people.LabelRows(
        task_id="label_rows",
        model_name="support",
        days="2026-03-04..2026-03-05",
        subject="Which are right?",
        options=[people._SEND_LABELS, people._LATER],
        defaults=people._LATER,
    )


def context():
    made = context_of("label_rows")
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"], "dag_run": SimpleNamespace(run_id="look 1")}


def answer(given):
    return {
        "chosen_options": [people._SEND_LABELS],
        "params_input": given,
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "7", "name": "ann"},
    }


def test_a_form_is_shown_and_what_was_filled_in_waits_for_the_scrubber(store, monkeypatch):
    shown = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: shown.append(detail))
    with pytest.raises(TaskAwaitingInput):
        operator().execute(context())
    fields = dict.fromkeys(shown[0]["params"])
    assert len(fields) == 6
    assert "question 2" in shown[0]["body"]
    given = {**fields, "decision_req-0": "accept"}
    operator().execute_complete(context(), answer(given))
    (key,) = store.keys("quarantine/answers/support")
    assert b"ann" in store.get_bytes(key)
    assert list(store.keys("labels")) == []


def test_a_wrong_answer_asks_again_and_leaves_nothing(store):
    given = {"decision_req-1": "correct", "corrected_req-1": ""}
    with pytest.raises(AirflowException, match="needs the corrected answer"):
        operator().execute_complete(context(), answer(given))
    assert list(store.keys("")) == []
