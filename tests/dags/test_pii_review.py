"""The questions of the review of personal data: dealt out, shown, stored, asked again."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.exceptions import AirflowException, TaskAwaitingInput
from tests.lab.runs import Lab
from tests.lab.tasks import context_of

from tuneline.artifacts.answers import findings_of
from tuneline.data.pii.review.review import READ_ALL

DRAW = "0123456789ab"


@pytest.fixture
def lab(tmp_path):
    made = Lab(tmp_path, {"data": {"pii_review": "ask", "pii_review_hours": 3}})
    rows = [
        {"row_id": f"{n}", "row_hash": "h", "stratum": "other", "weight": 1.0,
         "text": f"user: call Zebulon {n}"}
        for n in range(12)
    ]  # fmt: skip
    sheet = json.dumps({"draw_id": DRAW, "rows": rows})
    made.leave("pii_scrubbing", {"review_sheet.json": sheet})
    return made


def context(lab):
    made = context_of("review_rows", prepared={"return_value": lab.run.uri})
    made["ti"].id = "7"
    return {**made, "task_instance": made["ti"]}


def operator(dag, numbers):
    return dag.get_task("review_rows").unmap({"numbers": numbers})


def answer(cells, option="Send what was found", *, read=True):
    return {
        "chosen_options": [option],
        "params_input": {f"row_{n}_{DRAW}": cell for n, cell in cells.items()} | {READ_ALL: read},
        "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "ann", "name": "ann"},
    }


def test_rows_are_dealt_out_ten_at_a_time_and_none_without_a_question(dag, lab, tmp_path):
    deal = dag.get_task("pii_scrubbing").deal
    assert [len(form) for form in deal(lab.run)] == [10, 2]
    assert deal(Lab(tmp_path, {}, "other").run) == []


def test_the_question_shows_its_rows_for_the_configured_time(dag, lab, monkeypatch):
    told = []
    place = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(place, lambda **detail: told.append(detail))
    with pytest.raises(TaskAwaitingInput) as waiting:
        operator(dag, [11, 12]).execute(context(lab))
    assert waiting.value.timeout == timedelta(hours=3)
    assert "call Zebulon 10" in told[0]["body"]
    assert list(told[0]["params"]) == [f"row_11_{DRAW}", f"row_12_{DRAW}", READ_ALL]
    assert told[0]["defaults"] == ["Skip these rows"]


def test_what_was_found_is_kept_under_the_user_that_airflow_recorded(dag, lab):
    given = answer({11: "PERSON: Zebulon", 12: None})
    operator(dag, [11, 12]).execute_complete(context(lab), given)
    (found,) = findings_of(lab.run, DRAW)
    assert found.reviewer == "ann"
    assert found.missed == {11: [("PERSON", "Zebulon")], 12: []}


@pytest.mark.parametrize("option", ["Send what was found", "Skip these rows"])
def test_an_answer_of_somebody_who_was_not_asked_is_not_taken(dag, lab, option):
    meta = {**lab.run.meta, "approvers": [{"id": "7", "name": "ann"}]}
    lab.run.store.put_bytes(lab.run.key("run.json"), json.dumps(meta).encode())
    with pytest.raises(AirflowException, match=r"ann was not asked \(ann\)"):
        operator(dag, [11, 12]).execute_complete(context(lab), answer({11: None}, option))
    assert list(findings_of(lab.run, DRAW)) == []


def test_skipped_rows_leave_nothing(dag, lab):
    given = answer({11: None, 12: None}, "Skip these rows")
    operator(dag, [11, 12]).execute_complete(context(lab), given)
    assert list(findings_of(lab.run, DRAW)) == []


def test_rows_that_were_not_read_are_asked_about_again(dag, lab):
    with pytest.raises(AirflowException, match="tick that every row was read"):
        operator(dag, [11, 12]).execute_complete(
            context(lab), answer({11: None, 12: None}, read=False)
        )
    assert dag.get_task("review_rows").retries == 5
