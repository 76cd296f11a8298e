"""The review's form in a real browser: Chromium, Airflow's UI, and the votes that come of it."""

import os
from pathlib import Path

import pytest
from tests.lab.browser import chromium
from tests.lab.reviews import prepared
from tests.lab.runs import Lab
from tests.lab.site import Site

from tuneline.people import ballots
from tuneline.serving.processes import free_port
from tuneline.stack.layout import Layout

ROOT = Path(__file__).parents[2]
USERS = ("ann", "ben", "eve")
DAG = "review_form"

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def bench(tmp_path):
    settings = {"review": True, "review_pairs": 5, "reviewers": ["ann", "ben"]}
    made = Lab(tmp_path, {"evaluation": settings})
    prepared(made)
    return made


@pytest.fixture
def site(tmp_path, bench):
    layout = Layout(ROOT, tmp_path / "home", free_port(), free_port(), bench.run.store.uri)
    users = dict.fromkeys(USERS, "admin")
    made = Site(layout, users, "eve", REVIEW_RUN_URI=bench.run.uri)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def page(site):
    """A page of Chromium, in which ann is logged in."""
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 1400, "height": 1800})


def test_a_reviewer_votes_in_the_browser_and_others_cannot(site, bench, page, tmp_path):
    site.until(lambda: site.call("eve", "GET", f"/dags/{DAG}").is_success, "the DAG")
    site.call("eve", "PATCH", f"/dags/{DAG}", is_paused=False)
    body = {"dag_run_id": "r1", "logical_date": None}
    assert site.call("eve", "POST", f"/dags/{DAG}/dagRuns", **body).is_success
    asked = {("review_pairs", 0), ("review_pairs", 1)}
    site.until(
        lambda: (
            {t for t, one in site.tasks(DAG, "r1").items() if one["state"] == "awaiting_input"}
            == asked
        ),
        "two questions",
    )

    vote_in(page, site)
    site.until(
        lambda: site.tasks(DAG, "r1")["review_pairs", 0]["state"] == "success", "ann's votes"
    )
    (ballot,) = ballots.ballots(bench.run)
    assert (ballot.reviewer, ballot.source, ballot.comment) == ("ann", "airflow", "B is too long")
    assert [mark.choice for mark in ballot.marks] == ["A", "B", "tie", "both bad", "A"]

    path = f"/dags/{DAG}/dagRuns/r1/taskInstances/review_pairs/1/hitlDetails"
    answer = {"chosen_options": ["Skip the review"], "params_input": {}}
    assert site.call("eve", "PATCH", path, **answer).status_code == 403
    assert site.call("ben", "PATCH", path, **answer).status_code == 200
    site.until(
        lambda: site.tasks(DAG, "r1")["review_pairs", 1]["state"] == "success", "ben's answer"
    )
    assert len(ballots.ballots(bench.run)) == 1


LABELS = ("A is better", "B is better", "Tie", "Both are bad", "A is better")


def vote_in(page, site):
    """Log in as ann, fill the form, keep a picture of it, and send it."""
    shots = Path(os.environ.get("REVIEW_SCREENSHOTS") or site.layout.home)
    page.goto(f"{site.url}/dags/{DAG}/runs/r1/tasks/review_pairs/mapped/0/required_actions")
    page.get_by_label("Username").fill("ann")
    page.get_by_label("Password").fill("ann")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/required_actions*", timeout=60_000)
    page.get_by_text("Pair 5").first.wait_for(timeout=60_000)
    page.screenshot(path=shots / "review-form-empty.png", full_page=True)
    for number, label in enumerate(LABELS, 1):
        page.locator(f"[id^='element_pair_{number}_']").first.click()
        page.get_by_role("option", name=label).click()
    page.locator("[name='element_comment'], #element_comment").first.fill("B is too long")
    page.screenshot(path=shots / "review-form.png", full_page=True)
    page.get_by_role("button", name="Send votes").click()
