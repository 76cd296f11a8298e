"""What waits in a real Airflow: answers of users with and without the right, and a canary.

The tasks are those of the main DAG; the tests leave the evidence that steps would have left.
"""

import json

import pytest
import yaml
from tests.lab.browser import chromium
from tests.lab.canaries import ASKED, release
from tests.lab.reviews import leave_answers
from tests.lab.runs import IN_PRODUCTION, Lab
from tests.lab.site import ROOT, Site

from tuneline.artifacts.answers import PiiSheet, findings_of
from tuneline.config import merge
from tuneline.evidence import measure
from tuneline.governance.release.canary import CanaryLog
from tuneline.people import ballots
from tuneline.run import Run
from tuneline.serving.processes import free_port
from tuneline.stack.layout import Layout
from tuneline.store import open_store

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(900)]

DAG = "approvals__model"
RUN = (DAG, "r1")
USERS = {"alice": "op", "bob": "op", "eve": "op", "vic": "viewer", "root": "admin"}
HOLDS = measure("limit_holds", True, "flag", "==", True)
ASKED_OF_PEOPLE = {
    "data": {"pii_review": "ask"},
    "evaluation": {"review_pairs": 5, "reviewers": ["bob"]},
}
SETTINGS = merge(IN_PRODUCTION, ASKED_OF_PEOPLE)
DRAWN = PiiSheet.model_validate(
    {
        "draw_id": "0123456789ab",
        "rows": [
            {"row_id": str(n), "row_hash": "h", "stratum": "other", "weight": 1.0,
             "text": f"user: call Zebulon {n}"}
            for n in range(3)
        ],
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("site")
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": turns}) + "\n")
    folder = tmp_path / "models"
    folder.mkdir()
    model = {"approvers": ["alice", "bob"], "settings": {**SETTINGS}}
    model["settings"]["data"] = {**SETTINGS["data"], "source": str(data)}
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    layout = Layout(
        ROOT, tmp_path / "home", free_port(), free_port(), (tmp_path / "store").as_uri()
    )
    # On a busy machine the API server takes its time.
    patience = {"AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60", "TUNELINE_WAIT_SECONDS": "0.4"}
    made = Site(layout, USERS, "root", TUNELINE_MODELS=str(folder), **patience)
    made.start()
    try:
        for dag in (DAG, "canary"):
            made.until(
                lambda d=dag: made.call("root", "GET", f"/dags/{d}").is_success, "the DAG", 400
            )
            assert made.call("root", "PATCH", f"/dags/{dag}", is_paused=False).is_success
        yield made
    finally:
        made.stop()


def succeeds(site, task, index=-1):
    site.until(
        lambda: site.tasks(DAG, "r1")[task, index]["state"] == "success", f"the end of {task}"
    )


def test_people_answer_for_what_they_may_and_nothing_else(site, tmp_path):
    body = {"dag_run_id": "r1", "logical_date": None, "conf": {"reason": "stack test"}}
    assert site.call("vic", "POST", f"/dags/{DAG}/dagRuns", **body).status_code == 403
    assert site.call("alice", "POST", f"/dags/{DAG}/dagRuns", **body).is_success
    store, made = open_store(site.layout.store), "runs/r1__model/run.json"
    site.until(lambda: store.exists(made), "the run", 400)
    run = Run.open(site.layout.store + "/runs/r1__model")
    assert run.meta["started_by"] == "alice"
    lab = Lab(tmp_path / "lab", {})
    lab.run, lab.root = run, tmp_path / "lab"
    leave_answers(lab)
    lab.execute("prepare_review")
    lab.leave("pii_scrubbing", {"review_sheet.json": DRAWN.model_dump_json()}, [HOLDS])

    # Of personal data the approvers are asked, of answers the reviewer.
    site.waits(*RUN, "review_rows")
    fields = dict.fromkeys(site.question(*RUN, "review_rows", 0)["params"])
    first = next(name for name in fields if name.startswith("row_1_"))
    found = {**fields, first: "PERSON: Zebulon", "read_all": True}
    assert site.answer("eve", *RUN, "review_rows", "Send what was found", found, 0) == 403
    assert site.answer("alice", *RUN, "review_rows", "Send what was found", found, 0) == 200
    succeeds(site, "review_rows", 0)
    (findings,) = findings_of(run, DRAWN.draw_id)
    assert (findings.reviewer, findings.missed[1]) == ("alice", [("PERSON", "Zebulon")])
    site.waits(*RUN, "review_pairs")
    fields = list(site.question(*RUN, "review_pairs", 0)["params"])
    votes = {**dict.fromkeys(fields, "Tie"), "comment": None}
    assert site.answer("alice", *RUN, "review_pairs", "Send votes", votes, 0) == 403
    vote_in_a_browser(site, "bob")
    succeeds(site, "review_pairs", 0)
    (ballot,) = ballots.ballots(run)
    assert (ballot.reviewer, ballot.source, ballot.comment) == ("bob", "airflow", "B is too long")
    assert [mark.choice for mark in ballot.marks] == ["A", "B", "tie", "both bad", "A"]


VOTES = ("A is better", "B is better", "Tie", "Both are bad", "A is better")


def vote_in_a_browser(site, user):
    """Log in, fill the form and send it."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1800})
        page.goto(f"{site.url}/dags/{DAG}/runs/r1/tasks/review_pairs/mapped/0/required_actions")
        page.get_by_label("Username").fill(user)
        page.get_by_label("Password").fill(user)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/required_actions*", timeout=60_000)
        page.get_by_text("Pair 5").first.wait_for(timeout=60_000)
        for number, label in enumerate(VOTES, 1):
            page.locator(f"[id^='element_pair_{number}_']").first.click()
            page.get_by_role("option", name=label).click()
        page.locator("[name='element_comment'], #element_comment").first.fill("B is too long")
        page.get_by_role("button", name="Send votes").click()
        site.until(
            lambda: site.tasks(DAG, "r1")["review_pairs", 0]["state"] != "awaiting_input", "votes"
        )


@pytest.mark.parametrize("ends", ["success", "failed"])
def test_the_canary_leaves_its_slot_between_looks_until_it_is_decided(site, tmp_path, ends):
    run = Lab(tmp_path, ASKED, ends, store=site.layout.store).run
    store, name = run.store, run.config.name
    release(store, name, f"before-{ends}")
    release(store, name, ends, settings=ASKED)
    body = {"dag_run_id": ends, "logical_date": None, "conf": {"run_uri": run.uri}}
    assert site.call("root", "POST", "/dags/canary/dagRuns", **body).is_success
    path = f"/dags/canary/dagRuns/{ends}/taskInstances/canary"

    def task():
        return site.call("root", "GET", path).json()

    site.until(lambda: task()["state"] == "up_for_reschedule", "the first look", 400)
    log = CanaryLog(store)
    decide = log.promoted if ends == "success" else log.withdrawn
    decide(name, ends, 0.1, "the reason, after 400 answers")
    site.until(lambda: task()["state"] in ("success", "failed"), "the end", 400)
    assert (task()["state"], task()["try_number"]) == (ends, 1)
    told = site.call("root", "GET", f"{path}/xcomEntries/return_value").json().get("value", "")
    assert ("the reason, after 400 answers" in told) is (ends == "success")
