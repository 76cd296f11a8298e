"""The free-text sample through the whole stack: from raw rows to a release."""

import pytest
from tests.lab.whole_runs import TINY, finish, trigger

from tuneline.data.sample import FREE_TEXT
from tuneline.run import Run
from tuneline.stack.airflow import Airflow
from tuneline.verdicts import checklist

pytestmark = [
    pytest.mark.stack,
    pytest.mark.model,
    pytest.mark.long,
    pytest.mark.timeout(5400),
]

# The preset's training, which twenty steps can't stand for: the answers are sentences.
SETTINGS = {
    "name": "trail-notes",
    "data": {**TINY["data"], "max_train_rows": 330, "label_field": None},
    "evaluation": {**TINY["evaluation"], "max_new_tokens": 80},
    "deployment": TINY["deployment"],
}


@pytest.fixture(scope="module")
def client(running):
    made = Airflow(running.layout())
    yield made
    made.close()


def test_free_text_goes_from_raw_rows_to_a_release(client):
    run = trigger(client, "free-text", FREE_TEXT, SETTINGS)
    state, _, failures = finish(run, 5000)
    assert state == "success", failures
    made = Run.open(run.run_uri())
    rows = {row.item: row for row in checklist(made)}
    judged = rows["holdout_performance"]
    assert judged.summary.startswith("chrF on ")
    assert made.find_evidence("holdout_performance").verdict == "pass", judged.because
    # So small a run needs limits that are looser than the policy, which the checklist says.
    assert (judged.verdict, judged.because.partition(":")[0]) == ("warn", "the policy")
    assert not [name for name, row in rows.items() if row.stops_release]
