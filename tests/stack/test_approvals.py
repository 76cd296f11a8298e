"""What waits in a real Airflow: answers of users with and without the right, and a canary.

The tasks are those of the main DAG; the tests leave the evidence that steps would have left.
"""

import hashlib
import json

import pytest
import yaml
from tests.lab.browser import chromium
from tests.lab.canaries import ASKED, release
from tests.lab.reviews import leave_answers
from tests.lab.runs import IN_PRODUCTION, Lab
from tests.lab.site import ROOT, Site

from tuneline.artifacts.answers import APPROVALS, PiiSheet, findings_of
from tuneline.artifacts.governance import Manifest, ManifestFile, ManifestRef
from tuneline.catalogue import ITEMS
from tuneline.config import merge
from tuneline.evidence import measure
from tuneline.governance.release.approvals import refusal
from tuneline.governance.release.canary import CanaryLog
from tuneline.governance.release.manifest import write_manifest
from tuneline.people import ballots
from tuneline.run import Run
from tuneline.serving.processes import free_port
from tuneline.stack.layout import Layout
from tuneline.store import open_store

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(900)]

DAG = "approvals__model"
USERS = {"alice": "op", "bob": "op", "eve": "op", "vic": "viewer", "root": "admin"}
WHY = "agreed with the owner of the service"
HOLDS = measure("limit_holds", True, "flag", "==", True)
LIMIT = {
    "item": "holdout_performance",
    "limit": "evaluation.min_gain",
    "reason": "the base already answers everything",
}
ASKED_OF_PEOPLE = {
    "approval": True,
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


def waits(site, task, tries=1):
    """Wait until a question is put for the given time."""
    site.until(
        lambda: any(
            name == task and one["state"] == "awaiting_input" and one["try_number"] >= tries
            for (name, _), one in site.tasks(DAG, "r1").items()
        ),
        f"question {tries} of {task}",
    )
    site.settle()


def answer(site, user, task, option, fields, index=-1):
    path = f"/dags/{DAG}/dagRuns/r1/taskInstances/{task}/{index}/hitlDetails"
    body = {"chosen_options": [option], "params_input": fields}
    return site.call(user, "PATCH", path, **body).status_code


def question(site, task, index=-1):
    path = f"/dags/{DAG}/dagRuns/r1/taskInstances/{task}/{index}/hitlDetails"
    return site.call("root", "GET", path).json()


def succeeds(site, task, index=-1):
    site.until(
        lambda: site.tasks(DAG, "r1")[task, index]["state"] == "success", f"the end of {task}"
    )


def leave_evidence(lab):
    """Leave what the steps would have left, and a manifest that states it."""
    leave_answers(lab)
    lab.execute("prepare_review")
    lab.leave("pii_scrubbing", {"review_sheet.json": DRAWN.model_dump_json()}, [HOLDS])
    files = []
    for item in ITEMS:
        if item.id == "lineage":
            continue
        if item.id not in ("pii_scrubbing", "production_quantization"):
            lab.leave(item.id, {}, [HOLDS])
        for name in ("evidence.json", "gate.json"):
            if lab.run.store.exists(lab.run.step_key(item.id, name)):
                raw = lab.run.store.get_bytes(lab.run.step_key(item.id, name))
                digest, file = hashlib.sha256(raw).hexdigest(), f"evidence/{item.id}/{name}"
                files.append(ManifestFile(name=file, sha256=digest, bytes=len(raw)))
    manifest = Manifest(name="model", version="r1__model", files=files)
    digest = write_manifest(lab.run.store, "models/model/r1__model", manifest)
    uri = lab.run.store.uri_of("models/model/r1__model/manifest.json")
    reference = ManifestRef(uri=uri, sha256=digest, version="r1__model")
    lab.leave("lineage", {"manifest_ref.json": reference.model_dump_json()}, [HOLDS])
    return digest


def test_people_answer_for_what_they_may_and_nothing_else(site, tmp_path):
    overrides = yaml.safe_dump({"evaluation": {"min_gain": -1}, "waivers": [LIMIT]})
    conf = {"overrides": overrides, "reason": "stack test"}
    body = {"dag_run_id": "r1", "logical_date": None, "conf": conf}
    assert site.call("vic", "POST", f"/dags/{DAG}/dagRuns", **body).status_code == 403
    assert site.call("alice", "POST", f"/dags/{DAG}/dagRuns", **body).is_success

    # Refused for a viewer, a stranger, the starter, and without a reason.
    store, made = open_store(site.layout.store), "runs/r1__model/run.json"
    site.until(lambda: store.exists(made), "the run", 400)
    run = Run.open(site.layout.store + "/runs/r1__model")
    assert run.meta["started_by"] == "alice"
    lab = Lab(tmp_path / "lab", {})
    lab.run, lab.root = run, tmp_path / "lab"
    digest = leave_evidence(lab)
    waits(site, "approve_release")
    shown = question(site, "approve_release")["body"]
    assert digest in shown
    assert shown.count("limit\\_holds True") >= len(ITEMS) - 2
    assert "min\\_gain is -1.0, the policy allows at least 0; accepted: " in shown
    assert refusal(run) is not None
    given = {"reason": WHY}
    for user in ("vic", "eve"):
        assert answer(site, user, "approve_release", "Approve", given) == 403
    assert answer(site, "alice", "approve_release", "Approve", given) == 200
    waits(site, "approve_release", tries=2)
    assert answer(site, "bob", "approve_release", "Approve", {"reason": ""}) == 200
    waits(site, "approve_release", tries=3)
    assert answer(site, "bob", "approve_release", "Approve", given) == 200
    succeeds(site, "approve_release")
    assert answer(site, "alice", "approve_release", "Reject", given) == 409
    kept = [one for one in APPROVALS.find(run).approvals if one.subject == "approve_release"]
    assert [(one.by, one.decision, one.about) for one in kept] == [("bob", "Approve", digest)]
    assert refusal(run) is None

    # The reviews: of personal data by the approvers, of answers by the reviewer.
    waits(site, "review_rows")
    fields = dict.fromkeys(question(site, "review_rows", 0)["params"])
    first = next(name for name in fields if name.startswith("row_1_"))
    found = {**fields, first: "PERSON: Zebulon", "read_all": True}
    assert answer(site, "eve", "review_rows", "Send what was found", found, 0) == 403
    assert answer(site, "alice", "review_rows", "Send what was found", found, 0) == 200
    succeeds(site, "review_rows", 0)
    (findings,) = findings_of(run, DRAWN.draw_id)
    assert (findings.reviewer, findings.missed[1]) == ("alice", [("PERSON", "Zebulon")])
    waits(site, "review_pairs")
    fields = list(question(site, "review_pairs", 0)["params"])
    votes = {**dict.fromkeys(fields, "Tie"), "comment": None}
    assert answer(site, "alice", "review_pairs", "Send votes", votes, 0) == 403
    vote_in_a_browser(site, "bob")
    succeeds(site, "review_pairs", 0)
    (ballot,) = ballots.ballots(run)
    assert (ballot.reviewer, ballot.source, ballot.comment) == ("bob", "airflow", "B is too long")
    assert [mark.choice for mark in ballot.marks] == ["A", "B", "tie", "both bad", "A"]

    # Everyone who may read the run sees in its tab what was accepted, in red.
    page = site.request("vic", "GET", f"/release-checklist/page/{DAG}/r1").text
    assert '<div class="looser">' in page
    assert "accepted: the base already answers everything" in page

    # If no person had started the run, one approver would not be enough.
    meta = {**run.meta, "started_by": None}
    run.store.put_bytes(run.key("run.json"), json.dumps(meta).encode())
    APPROVALS.put(run, APPROVALS.find(run).model_copy(update={"approvals": []}))
    again = {"dry_run": False, "only_failed": False, "task_ids": ["approve_release"]}
    path = f"/dags/{DAG}/clearTaskInstances"
    assert site.call("root", "POST", path, dag_run_id="r1", **again).is_success
    waits(site, "approve_release", tries=3)
    assert answer(site, "alice", "approve_release", "Approve", given) == 200
    site.until(lambda: len(APPROVALS.find(run).approvals) == 1, "her answer")
    waits(site, "approve_release", tries=3)
    assert "alice alone has approved the release" in refusal(Run.open(run.uri))
    assert answer(site, "bob", "approve_release", "Approve", given) == 200
    succeeds(site, "approve_release")
    assert refusal(Run.open(run.uri)) is None


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
