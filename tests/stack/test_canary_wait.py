"""The task `canary` in a real Airflow: it leaves its slot between looks at the release log."""

import pytest
from tests.lab.canaries import ASKED, release
from tests.lab.runs import Lab
from tests.lab.site import ROOT, Site

from tuneline.governance.release.canary import CanaryLog
from tuneline.serving.processes import free_port
from tuneline.stack.layout import Layout

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    layout = Layout(ROOT, folder / "home", free_port(), free_port(), (folder / "store").as_uri())
    # On a busy machine the API server takes its time.
    patience = {"AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60", "TUNELINE_WAIT_SECONDS": "0.4"}
    made = Site(layout, {"root": "admin"}, "root", **patience)
    made.start()
    try:
        made.until(lambda: made.call("root", "GET", "/dags/canary").is_success, "the DAG", 400)
        made.call("root", "PATCH", "/dags/canary", is_paused=False)
        yield made
    finally:
        made.stop()


def waiting(site, folder, version):
    """Start the wait for a version that was just released; its store, name and task."""
    run = Lab(folder, ASKED, version, store=site.layout.store).run
    store, name = run.store, run.config.name
    release(store, name, f"before-{version}")
    release(store, name, version, settings=ASKED)
    body = {"dag_run_id": version, "logical_date": None, "conf": {"run_uri": run.uri}}
    assert site.call("root", "POST", "/dags/canary/dagRuns", **body).is_success

    def task():
        path = f"/dags/canary/dagRuns/{version}/taskInstances/canary"
        return site.call("root", "GET", path).json()

    site.until(lambda: task()["state"] == "up_for_reschedule", "the first look", 400)
    return store, name, task


def test_a_promoted_version_ends_the_wait_with_its_reason(site, tmp_path):
    store, name, task = waiting(site, tmp_path, "good")
    CanaryLog(store).promoted(name, "good", 0.1, "as good after 400 answers")
    site.until(lambda: task()["state"] == "success", "the end", 400)
    path = "/dags/canary/dagRuns/good"
    told = site.call("root", "GET", f"{path}/taskInstances/canary/xcomEntries/return_value").json()
    assert "good has come through its canary: as good after 400 answers" in told["value"]


def test_a_withdrawn_version_fails_the_run_without_another_try(site, tmp_path):
    store, name, task = waiting(site, tmp_path, "bad")
    CanaryLog(store).withdrawn(name, "bad", 0.1, "more errors after 90 answers")
    site.until(lambda: task()["state"] == "failed", "the end", 400)
    assert task()["try_number"] == 1
    run = site.call("root", "GET", "/dags/canary/dagRuns/bad").json()
    assert run["state"] == "failed"
