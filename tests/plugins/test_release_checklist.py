"""The Release checklist tab: behind a permission, everything escaped, errors as sentences.

Who gets in is tried against a running Airflow in tests/stack.
"""

import pytest
from fastapi.testclient import TestClient
from tests.lab.runs import Lab

from tuneline.evidence import measure


@pytest.fixture(scope="module")
def plugin():
    from release_checklist import plugin

    return plugin


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {})
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


def test_the_page_shows_25_rows_and_what_refuses_the_release(lab, client):
    lab.leave("schema_validation", {"a.json": "{}"}, [measure("bad", 3, "rows", "==", 0)])
    page = client.get("/page/finetune_to_production/test").text
    assert page.count("<details>") == 25
    assert "Release refused by: schema_validation" in page
    assert "bad is 3, must be == 0 rows" in page
    assert "stopped the run before it" in page


def test_what_a_run_says_is_escaped(lab, client):
    lab.leave("determinism", {}, [measure("<script>alert(1)</script>", 1, "x", "==", 0)])
    page = client.get("/page/finetune_to_production/test").text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_run_that_is_not_there_is_said_in_words(lab, client):
    page = client.get("/page/finetune_to_production/nobody<b>")
    assert page.status_code == 200
    assert "there is no run at" in page.text
    assert "<b>" not in page.text
    assert client.get("/api/finetune_to_production/nobody").status_code == 404


def test_a_missing_store_is_said_in_words(lab, client, monkeypatch):
    monkeypatch.delenv("TUNELINE_STORE")
    assert "TUNELINE_STORE is not set" in client.get("/page/d/r").text


def test_json_is_the_checklist(lab, client):
    rows = client.get("/api/finetune_to_production/test").json()
    assert len(rows) == 25
    assert set(rows[0]) == {"item", "phase", "severity", "verdict", "summary", "because"}
