"""The Release checklist tab: behind a permission, everything escaped, errors as sentences.

Who gets in is tried against a running Airflow in tests/stack.
"""

import base64
import html
import json
import re
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
    routes = {r.path: r for r in plugin.app.routes if hasattr(r, "dependencies")}
    # It asks for each model; see below.
    del routes["/releases"]
    of_run = "{dag_id}/{run_id}"
    assert routes.keys() == {
        f"/page/{of_run}", f"/api/{of_run}", f"/item/{of_run}/{{task_id}}/{{index}}",
        f"/file/{of_run}/{{step}}/{{name:path}}",
    }  # fmt: skip
    for route in routes.values():
        names = [d.dependency.__qualname__ for d in route.dependencies]
        assert any(name.startswith("requires_access_dag") for name in names), route.path


def test_it_registers_a_tab_on_the_run_and_on_its_tasks(plugin):
    from airflow.plugins_manager import AirflowPlugin

    assert issubclass(plugin.ReleaseChecklistPlugin, AirflowPlugin)
    views = plugin.ReleaseChecklistPlugin.external_views
    assert [view["destination"] for view in views] == ["dag_run", "task_instance", "nav"]
    (app,) = plugin.ReleaseChecklistPlugin.fastapi_apps
    assert all(view["href"].startswith(app["url_prefix"].lstrip("/")) for view in views)


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
    assert page.count('<details class="item"') == 25
    assert "looser than the policy" not in page
    assert "Release refused by: schema_validation. Not run yet: " in page
    assert "bad is 3, must be == 0 rows" in page
    assert "stopped the run before it" in page
    # What refuses is on top, with what to do about it.
    assert page.index('id="schema_validation"') < page.index('id="deduplication"')
    assert "What to do: read the rejected lines" in page


def test_what_the_last_release_measured_stands_next_to_it(tmp_path, monkeypatch, client):
    old = Lab(tmp_path, {}, run_id="old")
    name = old.run.config.name
    old.leave("determinism", {}, [measure("flips", 1, "prompts", "<=", 4)])
    stated = old.run.store.get_bytes(old.run.step_key("determinism", "evidence.json"))
    ships = {"evidence/determinism/evidence.json": stated}
    release(old.run.store, name, "old", ships=ships)
    new = Lab(tmp_path, {"profile": "production"}, run_id="new")
    belongs(new.run, run_id="new")
    monkeypatch.setenv("TUNELINE_STORE", new.run.store.uri)
    new.leave("determinism", {}, [measure("flips", 3, "prompts", "<=", 4, noise=0.5)])
    page = page_of(client, f"{MAIN}/new")
    assert "Numbers stand next to those of the last release, <code>old</code>" in page
    assert '3 prompts <span class="soft">± 0.5' in page
    row = page[page.index("<td>flips</td>") :]
    assert "<td>1</td>" in row[: row.index("</tr>")]
    assert row.count('class="before"') == 1


def test_the_page_of_a_task_is_that_of_its_item(lab, client):
    lab.leave("determinism", {"flips.json": "[]"}, [measure("flips", 1, "prompts", "<=", 4)])
    for task in ("determinism", "evaluation.determinism", "gate_determinism"):
        page = client.get(f"/item/{MAIN}/test/{task}/-1").text
        assert page.count('<details class="item"') == 1
        assert "flips.json" in page
    assert "not run" in client.get(f"/item/{MAIN}/test/train/{{MAP_INDEX}}").text
    # What runs before an item for it alone shows that item.
    lab.leave("lora_selection", {"sweep.json": "[]"}, [measure("ranks", 2, "ranks", ">=", 1)])
    for task, item in (("sweep", "lora_selection"), ("approve_release", "promote")):
        assert f"<code>{item}</code>" in client.get(f"/item/{MAIN}/test/{task}/0").text, task
    wrong = client.get(f"/item/{MAIN}/test/prepare_run/-1")
    assert (wrong.status_code, "prepare_run writes no evidence" in wrong.text) == (404, True)


def test_plots_and_files_are_shown_and_nothing_of_them_is_run(lab, client):
    files = {"loss.svg": "<svg><script>1</script></svg>", "rows.jsonl": "{}", "model.bin": "x"}
    lab.leave("loss_monitoring", files, [measure("x", 1, "", "<=", 2)])
    page = page_of(client)
    assert f'src="../../../release-checklist/file/{MAIN}/test/loss_monitoring/loss.svg"' in page
    place = f"/file/{MAIN}/test/loss_monitoring"
    plot = client.get(f"{place}/loss.svg")
    assert plot.headers["content-type"] == "image/svg+xml"
    policy = plot.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-same-origin; default-src 'none'")
    assert "script" not in policy
    assert client.get(f"{place}/rows.jsonl").headers["content-type"].startswith("text/plain")
    assert client.get(f"{place}/model.bin").headers["content-disposition"] == "attachment"
    lab.run.store.put_bytes(lab.run.key("data/data_docs/deduplication/index.html"), b"<p>docs")
    assert client.get(f"/file/{MAIN}/test/deduplication/data_docs/index.html").text == "<p>docs"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other.svg", "determinism has left no other.svg"),
        ("..%2F..%2Frun.json", "is not the name of a file"),
        ("quarantine/rejected.parquet", "may hold text of people"),
        ("data_docs/..%2f..%2frun.json", "is not the name of a file"),
        ("evidence.json", "determinism has left no evidence.json"),
    ],
)
def test_other_files_of_the_store_are_refused(lab, client, name, said):
    lab.leave("determinism", {"a.json": "{}"}, [measure("x", 1, "", "<=", 2)])
    answer = client.get(f"/file/{MAIN}/test/determinism/{name}")
    assert (answer.status_code, said in html.unescape(answer.text)) == (404, True), answer.text


def test_a_file_that_was_swapped_is_refused(lab, client):
    lab.leave("determinism", {"a.json": "{}"}, [measure("x", 1, "", "<=", 2)])
    lab.run.store.put_bytes(lab.run.step_key("determinism", "a.json"), b"[1]")
    answer = client.get(f"/file/{MAIN}/test/determinism/a.json")
    assert (answer.status_code, "SHA-256" in answer.text) == (503, True)


def test_rows_that_broke_a_rule_are_named_without_their_text(lab, client):
    example = {"row_id": "1", "source_file": "a.jsonl", "source_line": 4, "reason": "no_answer"}
    removed = {"reasons": {"no_answer": {"rows": 1, "examples": [example]}}}
    files = {"removed.json": json.dumps(removed)}
    lab.leave("schema_validation", files, [measure("x", 1, "", "<=", 2)])
    page = page_of(client)
    assert "<td>a.jsonl line 4</td><td>no_answer</td>" in page


def test_the_file_of_a_release_needs_nothing_else(lab):
    from tuneline.governance.pages.checklist import gather, render

    lab.leave("loss_monitoring", {"loss.svg": "<svg/>"}, [measure("x", 1, "", "<=", 2)])
    page = render(gather(lab.run))
    assert "data:image/svg+xml;base64," in page
    assert page.count("<details") == page.count(" open>")
    assert not re.search("<script|href=|data-live", page)


def test_a_run_that_is_running_says_how_far_it_is(lab, client):
    lab.run.note_progress("train", "step 3 of 9, <b>8 s left</b>")
    page = page_of(client)
    assert "<code>train</code> step 3 of 9, &lt;b&gt;8 s left" in page
    assert 'value="33"' in page
    assert "<main data-live>" in page
    lab.run.note_progress("answer_holdout[1]", "tuned model")
    assert "<code>answer_holdout[1]</code> tuned model" in page_of(client)
    for step in ("train", "answer_holdout[1]"):
        lab.run.end_progress(step)
    assert "step 3 of 9" not in page_of(client)


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
    answer = client.get(f"/page/{MAIN}/test")
    assert "<script>" not in answer.text
    assert "&lt;script&gt;" in answer.text
    # The page's own script alone is run.
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert answer.text.count(f'<script nonce="{nonce}">') == answer.text.count("<script") == 1


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
    assert "<details" not in foreign.text
    # It looks like one that is not there.
    absent = client.get(f"/page/{dag_id}/other").text
    assert absent.replace("other", run_id) == foreign.text
    assert client.get(f"/page/{HR}/monday").text.count('<details class="item"') == 25


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


@pytest.fixture
def rights(plugin, monkeypatch):
    """Rights of whoever asks: pairs of a method and the id of a DAG; nobody is logged in."""
    granted = set()

    from airflow.api_fastapi.core_api.security import get_user

    class Manager:
        def is_authorized_dag(self, *, method, details, **_):
            return (method, details.id) in granted

    monkeypatch.setattr(plugin, "get_auth_manager", Manager)
    monkeypatch.setitem(plugin.app.dependency_overrides, get_user, lambda: "somebody")
    return granted


def test_releases_are_shown_to_those_who_may_read_the_runs_of_their_model(
    lab, client, rights, monkeypatch, tmp_path
):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("hr", "support"):
        release(lab.run.store, name, "one")
        release(lab.run.store, name, "two")
        text = "settings: {data: {source: s3://bucket/x.jsonl}}\n"
        (models / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("TUNELINE_MODELS", str(models))
    monkeypatch.setenv("TUNELINE_LEDGER", str(tmp_path / "usage.sqlite"))
    assert "Nothing was released yet" in client.get("/releases").text
    rights.add(("GET", SUPPORT))
    page = client.get("/releases").text
    assert 'id="model-support"' in page
    assert "hr" not in re.findall('id="model-(.*?)"', page)
    # Only who may start the rollback is offered it, and only who runs the model sees its cost.
    assert "data-rollback" not in page
    assert "ledger" not in page
    rights |= {("POST", "rollback__support"), ("PUT", SUPPORT)}
    page = client.get("/releases").text
    assert 'data-rollback="rollback__support"' in page
    assert "usage.sqlite" in page


def test_who_is_not_logged_in_sees_no_releases(plugin):
    assert TestClient(plugin.app).get("/releases").status_code == 401


def test_releases_show_courses_drift_and_what_can_not_be_read(lab, client, rights):
    rights.add(("GET", MAIN))
    for number, version in enumerate(("one", "two")):
        bench = Lab(lab.root, {}, run_id=version)
        bench.leave(
            "holdout_performance", {}, [measure("tuned_metric", 0.5 + number / 4, "share", ">=", 0)]
        )
        key = bench.run.step_key("holdout_performance", "evidence.json")
        file = "evidence/holdout_performance/evidence.json"
        release(lab.run.store, "hr", version, ships={file: bench.run.store.get_bytes(key)})
    look = {"until": "2026-03-04", "verdict": "fail", "drifted": True, "summary": "new <b>topic"}
    place = "drift/hr/looks/2026-03-04/report.json"
    lab.run.store.put_bytes(place, json.dumps(look).encode())
    lab.run.store.put_bytes("models/broken/production.json", b"{}")
    page = client.get("/releases").text
    assert "task metric on the hold-out: <b>0.75</b>" in page
    assert 'points="5.0,40.0 195.0,8.0"' in page
    assert "new &lt;b&gt;topic" in page
    assert "broken/production.json can&#39;t be read" in page


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
    store.put_bytes(f"{prefix}/drift.svg", b"picture")
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
    assert '<div class="note stop">' in page
    assert '<td class="no">evaluation.min_gain is -1.0, the policy allows at least 0' in page
    assert '<td class="">evaluation.min_identical_share is 0.5' in page
    assert "no one has accepted it" in page
