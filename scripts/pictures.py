"""Take the pictures of docs/pictures from the UI of the running stack, in the light theme.

`make pictures` after a run was refused and one was released (docs/start/first-csv.md); a picture
whose run isn't there stays as it is. The pair of answers is taken by a test of the page.
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
        if best := last.get("success") or last.get("running"):
            run = f"/dags/{dag}/runs/{best}"
            take(page, f"{run}/plugin/release-checklist", "checklist", "#holdout_performance")
            take(
                page,
                f"{run}/tasks/loss_monitoring/plugin/evidence",
                "item",
                "details.item img",
                "end",
            )
            take(page, "/plugin/releases", "releases")
    return 0


def logged_in(browser: Browser, url: str, password: str) -> Page:
    """Return a page in which the administrator is logged in."""
    context = browser.new_context(base_url=url, viewport={"width": 1200, "height": 940})
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


def take(page: Page, path: str, name: str, shown: str = "h1", block: str = "start") -> None:
    """Take one picture of a page of the plugin, with an element unfolded and in sight."""
    page.goto(path)
    page.wait_for_load_state("networkidle")
    frame = page.frame_locator("iframe")
    frame.locator("h1, h2").first.wait_for()
    element = frame.locator(shown).first
    if element.count():
        element.evaluate(
            "(one, block) => { for (let up = one; up; up = up.parentElement) { up.open = true; }"
            " one.scrollIntoView({block}); }",
            block,
        )
    page.wait_for_timeout(2000)
    to = FOLDER / f"{name}.png"
    # 256 colours are enough for a page, and half of the bytes.
    Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(256).save(to, optimize=True)
    print(f"{to.name}: {to.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
