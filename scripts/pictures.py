"""Take the pictures of docs/pictures from the UI of the running stack, in the light theme.

`make pictures` after a run was refused, one was released and, for the pair, one waits for votes
(docs/start/first-csv.md, docs/do/review.md). A picture whose run isn't there stays as it is.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page
from tests.lab.browser import chromium

from tuneline.stack import airflow
from tuneline.stack.layout import find_layout, main_dag_id

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"


def main() -> int:
    """Take the pictures; return the exit code."""
    layout, dag = find_layout(), main_dag_id()
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        page = logged_in(browser, layout.ui_url, airflow.password(layout))
        runs = get(page, f"/api/v2/dags/{dag}/dagRuns?order_by=-start_date")["dag_runs"]
        last = {run["state"]: run["dag_run_id"] for run in reversed(runs)}
        if "failed" in last:
            take(page, f"/dags/{dag}/runs/{last['failed']}/plugin/release-checklist", "refused")
        if "success" in last:
            run = f"/dags/{dag}/runs/{last['success']}"
            take(page, f"{run}/plugin/release-checklist", "checklist", opened="holdout_performance")
            take(page, f"{run}/tasks/training.loss_monitoring/plugin/evidence", "item")
            take(page, "/plugin/releases", "releases")
        asked = get(page, "/api/v2/dags/~/dagRuns/~/hitlDetails?response_received=false")
        for question in asked["hitl_details"]:
            task = question["task_instance"]
            if task["task_id"].endswith("review_pairs"):
                run, index = f"/dags/{dag}/runs/{task['dag_run_id']}", task["map_index"]
                take(page, f"{run}/tasks/{task['task_id']}/mapped/{index}/plugin/evidence", "pair")
                break
    return 0


def logged_in(browser: Browser, url: str, password: str) -> Page:
    """Return a page in which the administrator is logged in."""
    context = browser.new_context(base_url=url, viewport={"width": 1200, "height": 800})
    context.add_init_script("localStorage.setItem('theme', 'light')")
    page = context.new_page()
    page.goto("/auth/login/")
    page.get_by_label("Username").fill(airflow.USER)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda address: "/auth/" not in address)
    return page


def get(page: Page, path: str) -> Any:
    """Return what Airflow's API answers."""
    return page.evaluate("path => fetch(path).then((answer) => answer.json())", path)


def take(page: Page, path: str, name: str, opened: str = "") -> None:
    """Take one picture of a page of the plugin, with the first item open or the named one."""
    page.goto(path)
    page.wait_for_load_state("networkidle")
    frame = page.frame_locator("iframe")
    frame.locator("h1, h2").first.wait_for()
    item = frame.locator(f"#{opened}" if opened else "details.item").first
    if item.count():
        item.evaluate(
            "one => { for (let e = one; e; e = e.parentElement) { e.open = true; } }"
        )
    page.wait_for_timeout(2000)
    if opened:
        item.scroll_into_view_if_needed()
    to = FOLDER / f"{name}.png"
    # 64 colours are enough for a page, and a third of the bytes.
    Image.open(BytesIO(page.screenshot())).quantize(64).save(to, optimize=True)
    print(f"{to.name}: {to.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
