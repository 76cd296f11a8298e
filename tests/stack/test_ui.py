"""The UI of a real Airflow draws every DAG, in a real browser, for users of each role.

No scheduler runs: the DAGs are stored as the DAG processor would, and the API gives tasks states.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from tests.lab.canaries import release
from tests.lab.runs import Lab
from tests.lab.site import ROOT, Site
from tests.lab.waiting import wait_for

from tuneline.catalogue import ITEMS, STEPS, Group
from tuneline.evidence import measure
from tuneline.launch import form_fields
from tuneline.serving.processes import free_port
from tuneline.stack.layout import Layout

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

# An editor is Airflow's `user`, who may start runs.
USERS = {"root": "admin", "uma": "user", "vic": "viewer"}
MAIN = "finetune_to_production"
STATES = {
    "prepare_run": "success",
    "fetch_base": "success",
    "schema_validation": "success",
    "gate_schema_validation": "failed",
}
# Stores the DAGs of a folder as they are with each folder of model files.
STORE_DAGS = """
import os, sys
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
DagBundlesManager().sync_bundles_to_db()
for models in sys.argv[2:]:
    os.environ["TUNELINE_MODELS"] = models
    bag = DagBag(sys.argv[1])
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, "dags-folder", None)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An API server that knows the DAGs of no model file, of one and of two, and a run."""
    root = tmp_path_factory.mktemp("ui")
    folders = []
    for names in ((), ("faq",), ("billing", "claims")):
        folders.append(root / f"models-{len(names)}")
        folders[-1].mkdir()
        for name in names:
            text = f"settings: {{data: {{source: s3://bucket/{name}.jsonl}}}}\n"
            (folders[-1] / f"{name}.yaml").write_text(text)
    lab = Lab(root, {})
    layout = Layout(ROOT, root / "home", free_port(), free_port(), lab.run.store.uri)
    made = Site(layout, USERS, "root", AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"))
    made.start(["api-server"])
    try:
        command = [sys.executable, "-c", STORE_DAGS, str(ROOT / "dags"), *map(str, folders)]
        subprocess.run(command, env=made.env, check=True, capture_output=True)
        made.until(lambda: made.call("root", "GET", "/monitor/health").is_success, "the API")
        start_run(made, lab)
        yield made
    finally:
        made.stop()


def start_run(site, lab):
    """Start a run of the main DAG, give tasks a state, and leave the evidence of one item."""
    runs = f"/dags/{MAIN}/dagRuns"
    assert site.call("root", "POST", runs, dag_run_id="test", logical_date=None).is_success
    for task, state in STATES.items():
        path = f"{runs}/test/taskInstances/{task}"
        assert site.call("root", "PATCH", path, new_state=state).is_success
    lab.leave("schema_validation", {}, [measure("broken_rows", 3, "rows", "==", 0)])
    for version in ("first", "second"):
        release(lab.run.store, lab.run.config.name, version)
    meta = {**lab.run.meta, "airflow": {"dag_id": MAIN, "run_id": "test"}}
    lab.run.store.put_bytes(lab.run.key("run.json"), json.dumps(meta).encode())


@pytest.fixture
def page(site, browser, request):
    """A page in which a user is logged in; what failed in it is in `page.problems`."""
    made = browser.new_page(viewport={"width": 1500, "height": 1200})
    made.problems, made.user = [], request.param
    made.goto(f"{site.url}/auth/login/")
    made.get_by_label("Username").fill(request.param)
    made.get_by_label("Password").fill(request.param)
    made.get_by_role("button", name="Sign in").click()
    made.wait_for_url(lambda url: "/auth/" not in url)
    made.wait_for_load_state("networkidle")

    made.on("response", lambda r: r.ok or made.problems.append(f"{r.status} {r.url}"))
    # The UI aborts what it no longer needs.
    made.on(
        "requestfailed",
        lambda r: "ABORTED" in r.failure or made.problems.append(f"{r.failure} {r.url}"),
    )
    made.on("console", lambda m: m.type == "error" and made.problems.append(m.text))
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    yield made
    made.close()


def names_in(node):
    """The ids of a structure and of all below it."""
    return {node["id"]} | {name for child in node.get("children") or () for name in names_in(child)}


def test_the_structure_of_every_dag_is_served(site):
    dags = site.call("root", "GET", "/dags?limit=100").json()["dags"]
    ids = {dag["dag_id"] for dag in dags}
    assert {MAIN, "rollback", f"{MAIN}__billing", "drift_watch__claims"} <= ids
    for dag_id in ids:
        grid = site.request("root", "GET", f"/ui/grid/structure/{dag_id}")
        graph = site.request("root", "GET", f"/ui/structure/structure_data?dag_id={dag_id}")
        assert (grid.status_code, graph.status_code) == (200, 200), (grid.text, graph.text)
        tasks = site.call("root", "GET", f"/dags/{dag_id}/tasks").json()["tasks"]
        names = {task["task_id"] for task in tasks}
        assert names
        assert names <= names_in({"id": "", "children": grid.json()})
        assert names <= names_in({"id": "", "children": graph.json()["nodes"]})


def test_the_checklist_of_a_run_is_that_of_its_dag(site):
    for user in USERS:
        page = f"/release-checklist/page/{MAIN}/test"
        assert site.request(user, "GET", page).status_code == 200
        for other in (f"{MAIN}__faq", "drift_watch", "no_dag_at_all"):
            assert site.request(user, "GET", page.replace(MAIN, other)).status_code in (403, 404)


@pytest.mark.parametrize("page", ["root", "vic"], indirect=True)
def test_a_run_has_its_grid_its_graph_and_its_checklist(site, page):
    page.goto(f"{site.url}/dags/{MAIN}/runs/test")
    page.get_by_test_id("expand-all-button").click()
    for step in STEPS:
        page.get_by_test_id(f"task-{step.id}").wait_for(state="attached")
    squares = page.locator(f'a[href*="/dags/{MAIN}/runs/test/tasks/"]')
    assert squares.count() >= len(STEPS) + len(Group)

    page.get_by_role("button", name="Show Graph").click()
    page.locator('.react-flow__node[data-id="promote"]').wait_for()
    shown = page.locator(".react-flow__node").evaluate_all("all => all.map(e => e.dataset.id)")
    assert {step.id for step in STEPS} | set(Group) <= set(shown)
    page.get_by_test_id("collapse-all-button").click()
    page.locator('.react-flow__node[data-id="promote"]').wait_for(state="detached")
    shown = page.locator(".react-flow__node").evaluate_all("all => all.map(e => e.dataset.id)")
    assert shown == [group.value for group in Group]

    page.get_by_role("button", name="Show Grid").click()
    page.get_by_role("tab", name="Release checklist").or_(
        page.get_by_role("link", name="Release checklist")
    ).first.click()
    tab = page.frame_locator("iframe")
    tab.get_by_text("broken_rows is 3").first.wait_for(state="attached")
    assert tab.locator("details.item").count() == len(ITEMS)
    tab.locator("body").evaluate("window.scrollTo(0, 0)")
    dark = "getComputedStyle(document.documentElement).colorScheme"
    for theme in ("dark", "light"):
        page.evaluate("name => { document.documentElement.className = name; }", theme)
        wait_for(lambda t=theme: tab.locator("body").evaluate(dark) == t)
    assert page.problems == []


@pytest.mark.parametrize("page", USERS, indirect=True)
def test_a_task_has_its_evidence_and_all_models_their_releases(site, page):
    page.goto(f"{site.url}/dags/{MAIN}/runs/test/tasks/schema_validation/plugin/evidence")
    tab = page.frame_locator("iframe")
    tab.get_by_text("broken_rows is 3").first.wait_for()
    assert tab.locator("details.item").count() == 1
    page.goto(f"{site.url}/plugin/releases")
    page.frame_locator("iframe").locator("h2[id^=model-]").wait_for()
    # Rolling back is for those who may start that DAG.
    forms = page.frame_locator("iframe").locator("form[data-rollback]").count()
    assert forms == (page.user != "vic")
    assert page.problems == []


def test_nobody_sees_a_page_without_logging_in(site):
    for path in (f"page/{MAIN}/test", f"item/{MAIN}/test/schema_validation/-1", "releases"):
        assert site.http.get(f"/release-checklist/{path}").status_code == 401


@pytest.mark.parametrize("page", ["root"], indirect=True)
def test_the_form_is_shown(site, page):
    page.goto(f"{site.url}/dags/{MAIN}")
    page.get_by_test_id("trigger-dag-button").click()
    page.get_by_text("Dataset", exact=True).wait_for()
    sections = {field["section"] for field in form_fields().values() if "section" in field}
    for section in sections:
        page.get_by_role("button", name=section).click()
    for field in form_fields().values():
        page.get_by_text(field["title"]).first.wait_for(state="attached")
    # Only DAGs say what started a run.
    assert page.locator("[id=element_data]").count() == 1
    assert page.locator("[id=element_trigger]").count() == 0
    assert page.problems == []


def script_of(page, name):
    """The commands of a page that a comment names."""
    text = (ROOT / "docs" / "do" / page).read_text()
    (found,) = re.findall(rf"```bash\n# {name}\n(.*?)```", text, re.S)
    return found


@pytest.mark.parametrize(("state", "code"), [("success", 0), ("failed", 1)])
def test_a_run_is_started_and_stopped_by_the_commands_of_the_pages(site, state, code):
    start, loop, wait = script_of("ci.md", "run").partition("state=queued\n")
    stop = script_of("stop.md", "stop") if state == "failed" else ""
    login = {"AIRFLOW": site.url, "LOGIN": "uma", "PASSWORD": "uma", "DAG": MAIN, "EVERY": "0.2"}
    script = ["bash", "-euo", "pipefail", "-c", f"{start}{stop}{loop}{wait}"]
    with subprocess.Popen(
        script, env={**os.environ, **login}, stdout=subprocess.PIPE, text=True
    ) as process:
        run = process.stdout.readline().removeprefix("started ").strip()
        path = f"/dags/{MAIN}/dagRuns/{run}"
        asked = site.call("root", "GET", path).json()["conf"]
        assert asked["overrides"] == "training: {epochs: 2}"
        if state == "success":
            assert site.call("root", "PATCH", path, state=state).is_success
        assert process.communicate(timeout=60)[0] == f"{run}: {state}\n"
    assert process.returncode == code
