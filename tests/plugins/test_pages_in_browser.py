"""The pages in a real browser, in a frame as Airflow shows them: looks, progress, keys.

Airflow's API is a recorder that has the paths and documents of Airflow's own; a whole Airflow is
asked in tests/stack.
"""

import json
import os
import re
import threading

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from tests.lab.canaries import release
from tests.lab.runs import Lab, change_meta
from tests.lab.waiting import wait_for

from tuneline.evidence import measure
from tuneline.governance.production import labels
from tuneline.people import blind_review
from tuneline.serving.processes import free_port

MAIN = "finetune_to_production"
HOSTILE = "<img src=x onerror=alert(1)>$x_1$ \u202e"
WAIVER = {
    "item": "cold_start", "measurement": "seconds", "up_to": 80, "reason": f"agreed {HOSTILE}"
}  # fmt: skip
# As the frame of a plugin in Airflow 3.3.
SANDBOX = "allow-scripts allow-same-origin allow-forms allow-downloads"
FRAME = """<!doctype html><html lang=en class="{theme}"><title>UI</title>
<iframe title=plugin src="{src}" sandbox="{sandbox}" style="border:0;width:100%"></iframe></html>"""


class Ui:
    """An API server with the plugin, whose users may do all but what `refuses` says."""

    def __init__(self, root):
        self.questions, self.answers, self.started, self.refuses = {}, [], [], set()
        self.lab = Lab(root, {"profile": "production", "waivers": [WAIVER]})
        change_meta(self.lab, started_by="alice")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, place, body, fields, options):
        params = {
            name: {"value": field.pop("default", None), "description": None, "schema": field}
            for name, field in fields.items()
        }
        task = dict(zip(("dag_id", "dag_run_id", "task_id", "map_index"), place, strict=True))
        self.questions[place] = {
            "subject": "Which answer?", "body": body, "params": params, "options": options,
            "response_received": False, "task_instance": task,
        }  # fmt: skip

    def app(self, plugin):
        root = FastAPI()
        root.mount("/release-checklist", plugin.app)

        @root.get("/frame")
        def frame(src: str, theme: str = "light") -> HTMLResponse:
            return HTMLResponse(FRAME.format(src=src, theme=theme, sandbox=SANDBOX))

        @root.get("/favicon.ico", status_code=204)
        def icon() -> None:
            pass

        place = "/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/{index}/hitlDetails"

        @root.get("/api/v2/dags/~/dagRuns/~/hitlDetails")
        def listed():
            return {"hitl_details": list(self.questions.values())}

        @root.get(place)
        def one(dag: str, run: str, task: str, index: int):
            return self.questions[dag, run, task, index]

        @root.patch(place)
        async def answer(dag: str, run: str, task: str, index: int, request: Request):
            if task in self.refuses:
                raise HTTPException(403, "Forbidden")
            self.answers.append(await request.json())
            return {}

        @root.post("/api/v2/dags/{dag}/dagRuns")
        async def start(dag: str, request: Request):
            self.started.append((dag, await request.json()))
            return {"dag_id": dag, "dag_run_id": "manual__1"}

        return root


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    from airflow.api_fastapi.core_api.security import get_user

    from tuneline.airflow.release_checklist import plugin

    made = Ui(tmp_path_factory.mktemp("ui"))
    meta = {**made.lab.run.meta, "airflow": {"dag_id": MAIN, "run_id": "test"}}
    made.lab.run.store.put_bytes(made.lab.run.key("run.json"), json.dumps(meta).encode())
    fill(made.lab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_STORE", made.lab.run.store.uri)
        auth = type("Auth", (), {"is_authorized_dag": lambda *_, **__: True})()
        patch.setattr(plugin, "get_auth_manager", lambda: auth)
        for route in plugin.app.routes:
            for dependency in getattr(route, "dependencies", []):
                plugin.app.dependency_overrides[dependency.dependency] = lambda: None
        plugin.app.dependency_overrides[get_user] = lambda: "user"
        config = uvicorn.Config(made.app(plugin), port=made.port, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        yield made
        server.should_exit = True
        thread.join(10)
        plugin.app.dependency_overrides.clear()


def fill(lab):
    """Leave items that refuse, are undecided, waived and pass, a plot, and two releases."""
    plot = "<svg xmlns='http://www.w3.org/2000/svg' width='300' height='80'></svg>"
    broken = [measure(HOSTILE, 3, "rows", "==", 0), measure("share", 0.4, "share", "<=", 0.1)]
    row = {"row_id": "1", "source_file": HOSTILE, "source_line": 4, "reason": "no_answer"}
    removed = {"reasons": {"no_answer": {"examples": [row]}}}
    lab.leave("schema_validation", {"removed.json": json.dumps(removed)}, broken)
    few = measure("rate", 0.5, "share", ">=", 0.2, noise=0.1)
    lab.leave("determinism", {"a.json": "{}"}, [few])
    lab.leave("cold_start", {}, [measure("seconds", 70, "s", "<=", 60)])
    lab.leave("loss_monitoring", {"loss.svg": plot}, [measure("x", 1, "", "<=", 2)])
    stated = lab.run.store.get_bytes(lab.run.step_key("determinism", "evidence.json"))
    ships = {"evidence/determinism/evidence.json": stated}
    for version in ("first", "second"):
        release(lab.run.store, lab.run.config.name, version, ships=ships)


@pytest.fixture
def page(browser):
    """A page; what failed in it, and every dialog, is in `page.problems`."""
    made = browser.new_page(viewport={"width": 1300, "height": 900})
    made.problems = []
    made.on("console", lambda m: m.type == "error" and made.problems.append(m.text))
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    made.on("dialog", lambda dialog: (made.problems.append(dialog.message), dialog.dismiss()))
    yield made
    assert made.problems == []
    made.close()


PAGES = {
    "run": f"/release-checklist/page/{MAIN}/test",
    "item": f"/release-checklist/item/{MAIN}/test/loss_monitoring/-1",
    "releases": "/release-checklist/releases",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_under_either_theme_of_airflow(ui, page, name, theme):
    page.goto(f"{ui.url}/frame?theme={theme}&src={PAGES[name]}")
    frame = page.frames[1]
    frame.wait_for_load_state("networkidle")
    frame.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert frame.evaluate("document.documentElement.dataset.theme") == theme
    dark = frame.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert dark == (theme == "dark")
    found = Axe().run(page.main_frame.child_frames[0]).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    # The switch is followed at once.
    page.evaluate("document.documentElement.className = 'light'")
    wait_for(lambda: frame.evaluate("document.documentElement.dataset.theme") == "light")


@pytest.mark.parametrize("width", [400, 1900])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_window(ui, page, name, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(ui.url + PAGES[name])
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_refuses_is_open_on_top_and_texts_of_others_are_texts(ui, page):
    page.goto(ui.url + PAGES["run"])
    first = page.locator("details.item").first
    assert first.get_attribute("id") == "schema_validation"
    assert first.is_visible()
    first.locator("summary").first.click()
    assert HOSTILE in first.locator("td").first.text_content()
    assert page.locator("img[src=x]").count() == 0
    assert not page.locator("#determinism").is_visible()
    page.locator("summary", has_text="Holds").click()
    page.locator("#loss_monitoring > summary").click()
    plot = page.locator("#loss_monitoring img")
    wait_for(lambda: plot.evaluate("one => one.naturalWidth") == 300)


def test_what_was_waived_is_not_refused_and_says_why(ui, page):
    page.goto(ui.url + PAGES["run"])
    waived = page.locator(".group", has=page.locator("#cold_start"))
    assert waived.locator("h2").text_content().startswith("Undecided, warned or waived")
    waived.locator("#cold_start > summary").click()
    assert "waived" in waived.locator("#cold_start").text_content()
    decided = page.locator("tr", has_text="waived seconds up to 80.0 of cold_start")
    assert HOSTILE in decided.text_content()
    assert "cold_start" not in page.locator("p.note").first.text_content()


def test_a_running_page_is_read_again_and_keeps_what_is_open(ui, page):
    page.goto(ui.url + PAGES["run"])
    page.locator("#schema_validation > summary").click()
    ui.lab.run.note_progress("train", "optimiser steps: 5 of 20, 31 s left")
    progress = page.locator("progress[aria-label=train]")
    progress.wait_for(timeout=20_000)
    assert progress.get_attribute("value") == "25"
    assert page.locator("#schema_validation").get_attribute("open") is not None
    ui.lab.run.end_progress("train")


def test_links_leave_the_frame_to_airflow(ui, page):
    page.goto(f"{ui.url}/frame?src={PAGES['item']}")
    page.frame_locator("iframe").get_by_text("task and its log").click()
    page.wait_for_url(f"{ui.url}/dags/{MAIN}/runs/test/tasks/loss_monitoring")
    # There is no such page here.
    page.problems.clear()


def test_a_version_is_rolled_back_to_by_airflows_own_api(ui, page):
    page.goto(ui.url + PAGES["releases"])
    assert page.locator("table.grid th").all_text_contents()[1:] == ["second", "first"]
    page.get_by_role("button", name="Roll back").click()
    assert ui.started == []  # without a reason
    page.get_by_label("Reason").fill("slower")
    page.get_by_role("button", name="Roll back").click()
    wait_for(lambda: "started: manual__1 of rollback" in page.locator("output").text_content())
    conf = {"version": "first", "reason": "slower"}
    assert ui.started == [("rollback", {"logical_date": None, "conf": conf})]


def test_a_release_is_approved_from_the_list(ui, page):
    place = (MAIN, "test", "approve_release", -1)
    ui.ask(place, f"Release {HOSTILE}?", {}, ["Approve", "Reject"])
    ui.refuses.add("approve_release")
    page.goto(ui.url + PAGES["releases"])
    page.locator("[data-questions]").get_by_label("Reason").fill("measured well")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("you may not do this here").wait_for()
    page.problems.clear()
    ui.refuses.clear()
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("Approve: recorded").wait_for()
    expected = {"chosen_options": ["Approve"], "params_input": {"approval_reason": "measured well"}}
    assert ui.answers.pop() == expected
    del ui.questions[place]


def test_pairs_are_judged_one_after_another_by_keys(ui, page):
    run, numbers = ui.lab.run, [1, 2, 3]
    pairs = [
        {"pair": n, "prompt": f"ask {n} ```\n### Pair 9", "A": HOSTILE, "B": "b"} for n in numbers
    ]
    pairs[1] |= {
        "prompt": "My parcel has been at the depot since Monday. Can you send it to my office?",
        "A": "I am sorry for the delay. Which address is your office at?",
        "B": "Parcels are delivered on working days.",
    }
    sheet = {"review_id": "0" * 12, "instructions": "Which is better?", "pairs": pairs}
    ui.lab.leave("prepare_review", {"pairs.json": json.dumps(sheet)})
    place = (MAIN, "test", "review_pairs", 0)
    body = f"[link](x)\n\n{blind_review.review_body(run, numbers)}"
    fields = blind_review.form_fields(run, numbers)
    ui.ask(place, body, fields, ["Send votes", "Skip the review"])
    page.goto(f"{ui.url}/release-checklist/item/{MAIN}/test/review_pairs/0")
    page.get_by_role("heading", name="Pair 1").wait_for()
    assert page.locator("pre").all_text_contents() == ["ask 1 ```\n### Pair 9", HOSTILE, "b"]
    page.keyboard.press("1")
    page.get_by_role("heading", name="Pair 2").wait_for()
    if folder := os.environ.get("TUNELINE_PICTURES"):
        page.set_viewport_size({"width": 1000, "height": 560})
        page.screenshot(path=f"{folder}/pair.png")
    page.keyboard.press("4")
    page.get_by_role("heading", name="Pair 3").wait_for()
    page.keyboard.press("u")
    page.get_by_role("heading", name="Pair 2").wait_for()
    assert page.locator("progress").get_attribute("value") == "1"
    page.keyboard.press("3")
    # A reload loses nothing.
    page.reload()
    page.get_by_role("heading", name="Pair 3").wait_for()
    page.keyboard.press("2")
    page.get_by_label("Comment").fill("all alike")
    page.get_by_role("button", name="Send votes").click()
    page.get_by_text("Send votes: sent").wait_for()
    sent = ui.answers.pop()
    assert sent["chosen_options"] == ["Send votes"]
    assert blind_review.record_form(run, numbers, sent["params_input"], "alice") == 3
    del ui.questions[place]


def test_fifty_labels_take_as_many_keys(ui, page):
    ids = [f"r{n}" for n in range(50)]
    rows = [
        labels.ReviewRow(one, "2026-03-01", [{"role": "user", "content": f"q {one}"}],
                         f"answer {one}", "random", [], None) for one in ids
    ]  # fmt: skip
    body, fields = labels.label_form(rows)
    place = ("drift_watch", "look", "label_rows", -1)
    ui.ask(place, body, fields, ["Send labels", "Go on without"])
    page.goto(f"{ui.url}/release-checklist/item/drift_watch/look/label_rows/{{MAP_INDEX}}")
    page.get_by_role("heading", name=re.compile("^Row 1 ")).wait_for()
    for _ in range(49):
        page.keyboard.press("1")
    page.keyboard.press("3")
    page.get_by_label(re.compile("as it should be")).fill("right")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Send labels").click()
    page.get_by_text("Send labels: sent").wait_for()
    sent = ui.answers.pop()["params_input"]
    assert labels.ids_of_form(sent) == ids
    assert {sent[f"decision_{one}"] for one in ids[:49]} == {"accept"}
    assert (sent["decision_r49"], sent["corrected_r49"]) == ("correct", "right")
