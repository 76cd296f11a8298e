"""The Release checklist tab: behind a permission, everything escaped, errors as sentences.

Who gets in is tried against a running Airflow in tests/stack.
"""

import base64
import json
from importlib.metadata import entry_points
from importlib.resources import files

import jsonschema
import pytest
from fastapi.testclient import TestClient
from tests.lab.canaries import ASKED, release
from tests.lab.runs import Lab

from tuneline.evidence import measure
from tuneline.governance.release.canary import CanaryLog
from tuneline.governance.retraining.outcome import write_outcome

MAIN = "finetune_to_production"


@pytest.fixture(scope="module")
def plugin():
    from tuneline.airflow.release_checklist import plugin

    return plugin


def belongs(run, dag_id=MAIN, run_id="test"):
    """Have a run say which run in Airflow it is."""
    meta = {**run.meta, "airflow": {"dag_id": dag_id, "run_id": run_id}}
    run.store.put_bytes(run.key("run.json"), json.dumps(meta).encode())


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {})
    belongs(lab.run)
    monkeypatch.setenv("TUNELINE_STORE", lab.run.store.uri)
    return lab


@pytest.fixture
def client(plugin):
    """The app with its permission check answered, since no Airflow runs here."""
    for route in plugin.app.routes:
        for dependency in getattr(route, "dependencies", []):
            plugin.app.dependency_overrides[dependency.dependency] = lambda: None
    yield TestClient(plugin.app)
    plugin.app.dependency_overrides.clear()


def page_of(client, run=f"{MAIN}/test"):
    return client.get(f"/page/{run}").text


def test_every_route_asks_for_the_permission_to_read_the_run(plugin):
    routes = [r for r in plugin.app.routes if hasattr(r, "dependencies")]
    assert {r.path for r in routes} == {"/page/{dag_id}/{run_id}", "/api/{dag_id}/{run_id}"}
    for route in routes:
        names = [d.dependency.__qualname__ for d in route.dependencies]
        assert any(name.startswith("requires_access_dag") for name in names), route.path


def test_it_registers_one_tab_on_the_dag_run(plugin):
    from airflow.plugins_manager import AirflowPlugin

    assert issubclass(plugin.ReleaseChecklistPlugin, AirflowPlugin)
    (view,) = plugin.ReleaseChecklistPlugin.external_views
    assert view["destination"] == "dag_run"
    assert not view["href"].startswith("/")
    (app,) = plugin.ReleaseChecklistPlugin.fastapi_apps
    assert view["href"].startswith(app["url_prefix"].lstrip("/"))


def test_airflow_finds_it_and_the_provider_by_entry_points(plugin):
    (found,) = entry_points(group="airflow.plugins", name="release_checklist")
    assert found.load() is plugin.ReleaseChecklistPlugin
    (provider,) = (
        e
        for e in entry_points(group="apache_airflow_provider", name="provider_info")
        if e.dist.name == "tuneline"
    )
    schema = json.loads((files("airflow") / "provider_info.schema.json").read_text())
    jsonschema.validate(provider.load()(), schema)


def test_the_page_shows_25_rows_and_what_refuses_the_release(lab, client):
    lab.leave("schema_validation", {"a.json": "{}"}, [measure("bad", 3, "rows", "==", 0)])
    page = page_of(client)
    assert page.count("<details>") == 25
    assert "looser than the policy" not in page
    assert "Release refused by: schema_validation. Not run yet: " in page
    assert "bad is 3, must be == 0 rows" in page
    assert "stopped the run before it" in page


def test_a_run_that_is_running_says_how_far_it_is(lab, client):
    lab.run.note_progress("train", "step 3 of 9, <b>8 s left</b>")
    page = page_of(client)
    assert "<code>train</code> step 3 of 9, &lt;b&gt;8 s left" in page
    assert 'http-equiv="refresh"' in page
    lab.run.note_progress("answer_holdout[1]", "tuned model")
    assert "<code>answer_holdout[1]</code> tuned model" in page_of(client)
    for step in ("train", "answer_holdout[1]"):
        lab.run.end_progress(step)
    assert 'http-equiv="refresh"' not in page_of(client)


def test_the_page_says_how_the_canary_of_the_run_stands(tmp_path, monkeypatch, client):
    run = Lab(tmp_path, ASKED).run
    belongs(run)
    monkeypatch.setenv("TUNELINE_STORE", run.store.uri)
    name = run.config.name
    release(run.store, name, "before")
    assert "Canary:" not in page_of(client)
    release(run.store, name, "test")
    CanaryLog(run.store).withdrawn(name, "test", 0.1, "more <b>errors</b>")
    page = page_of(client)
    assert "was withdrawn: more &lt;b&gt;errors&lt;/b&gt;; before serves now." in page


def test_what_a_run_says_is_escaped(lab, client):
    lab.leave("determinism", {}, [measure("<script>alert(1)</script>", 1, "x", "==", 0)])
    page = page_of(client)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_is_not_there_is_said_in_words(lab, client, monkeypatch):
    page = client.get("/page/finetune_to_production/nobody<b>")
    assert page.status_code == 404
    assert "the store has no run of nobody&lt;b&gt; of finetune_to_production" in page.text
    assert "<b>" not in page.text
    assert client.get("/api/finetune_to_production/nobody").status_code == 404
    monkeypatch.delenv("TUNELINE_STORE")
    assert "TUNELINE_STORE is not set" in page_of(client, "d/r")


HR, SUPPORT = f"{MAIN}__hr", f"{MAIN}__support"


# A DAG and a run of it that somebody may read, of whom the run in the store is not.
@pytest.mark.parametrize(
    ("dag_id", "run_id"),
    [
        (SUPPORT, "monday__hr"),
        (SUPPORT, "monday"),
        (MAIN, "monday__hr"),
        ("mine__hr", "monday"),
        (HR, "monday__hr"),
        ("mine", "test"),
    ],
)
def test_the_runs_of_other_dags_are_not_shown(lab, client, dag_id, run_id):
    other = Lab(lab.root, {}, run_id="monday__hr").run
    belongs(other, HR, "monday")
    foreign = client.get(f"/page/{dag_id}/{run_id}")
    assert foreign.status_code == client.get(f"/api/{dag_id}/{run_id}").status_code == 404
    assert "<details>" not in foreign.text
    # It looks like one that is not there.
    absent = client.get(f"/page/{dag_id}/other").text
    assert absent.replace("other", run_id) == foreign.text
    assert client.get(f"/page/{HR}/monday").text.count("<details>") == 25


def test_a_run_of_an_earlier_version_is_shown_to_its_own_dag_alone(lab, client):
    old = Lab(lab.root, {}, run_id="tuesday").run
    belongs(old, HR, "tuesday")
    assert client.get(f"/page/{HR}/tuesday").status_code == 200
    assert client.get(f"/page/{SUPPORT}/tuesday").status_code == 404


def test_what_another_run_did_is_not_shown(lab, client):
    write_outcome(lab.run.store, "drift_watch__hr", "look:1", "drift of secret prompts")
    assert "secret" in client.get("/page/drift_watch__hr/look:1").text
    for dag_id, run_id in (("drift_watch__hr", "look-1"), ("drift_watch__hr.", "look:1")):
        page = client.get(f"/page/{dag_id}/{run_id}")
        assert (page.status_code, "secret" in page.text) == (404, False)


def test_json_is_the_checklist(lab, client):
    rows = client.get("/api/finetune_to_production/test").json()
    assert len(rows) == 25
    assert set(rows[0]) == {"item", "phase", "severity", "verdict", "summary", "because"}


def test_a_watch_shows_what_it_did_and_the_report_behind_it(lab, client):
    store = lab.run.store
    report = {
        "measures": [
            {"name": "novelty_share", "value": 0.4, "p_value": 0.0001, "limit": 0.0135,
             "drifted": True, "since": "2026-03-04"},
        ],
        "drivers": {"novelty_share": [{"day": "2026-03-04", "text": "a <b>poem</b>"}]},
    }  # fmt: skip
    prefix = "drift/support/looks/2026-03-04"
    ref = store.put_bytes(f"{prefix}/report.json", json.dumps(report).encode())
    store.put_bytes(f"{prefix}/drift.png", b"picture")
    write_outcome(store, "drift_watch", "look-1", "drift since 2026-03-04", ref.uri)
    write_outcome(store, "drift_watch", "look-1", "started run <x>")
    page = client.get("/page/drift_watch/look-1").text
    assert "started run &lt;x&gt;" in page
    assert "novelty_share" in page
    assert "drifted" in page
    assert "a &lt;b&gt;poem" in page
    assert base64.b64encode(b"picture").decode() in page


LOOSE = {"profile": "production", "evaluation": {"min_gain": -1, "min_identical_share": 0.5}}


def test_limits_looser_than_the_policy_stand_in_red_on_top(tmp_path, client, monkeypatch):
    lab = Lab(tmp_path, LOOSE)
    belongs(lab.run)
    monkeypatch.setenv("TUNELINE_STORE", lab.run.store.uri)
    page = page_of(client)
    assert '<div class="looser">' in page
    assert '<td class="no">evaluation.min_gain is -1.0, the policy allows at least 0' in page
    assert '<td class="">evaluation.min_identical_share is 0.5' in page
    assert "no one has accepted it" in page
