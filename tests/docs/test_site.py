"""The site: what is broken is named, and it works without any server."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.lab.browser import chromium
from tests.lab.commands import call

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-dev" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.with_name("mkdocs").exists(), reason="`make lint` builds .venv-dev"
)
INDEX = "# Pages\n\n**Start**\n\n- [One](one.md)\n- [Files](../files)\n"
PAGE = "# One\n\n## A `code` heading\n\n[a](#a-code-heading) [b](../files) `[c](none.md)`\n"


@pytest.fixture
def build(tmp_path):
    """Builds a site of a small repository."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x.yaml").write_text("a: 1\n")
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "iframe-worker.js"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / ".gitignore").write_text(".tuneline\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def run(**pages):
        for name, text in {"README": INDEX, "one": PAGE, **pages}.items():
            (tmp_path / "docs" / f"{name}.md").write_text(text)
        return call(PYTHON, ROOT / "scripts" / "site.py", tmp_path)

    return run


def test_what_leads_nowhere_and_what_nothing_leads_to_is_named(build):
    links = "[x](none.md) [y](#no-heading) ![z](none.png) [w](../nowhere)"
    done = build(one=PAGE + links, two="# Two\n", README=INDEX + "- [Gone](gone.md)\n")
    assert done.returncode == 1
    for named in (
        "none.md",
        "#no-heading",
        "none.png",
        "../nowhere",
        "docs/two.md",
        "docs/gone.md",
    ):
        assert named in done.stderr


def test_the_search_works_from_a_folder_and_nothing_is_asked_of_another_machine(build, tmp_path):
    done = build(one=PAGE + "\nzebra\n")
    assert done.returncode == 0, done.stderr
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / ".tuneline" / "site" / "docs" / "one.html").as_uri())
        page.get_by_placeholder("Search").click()
        page.keyboard.type("zebra", delay=30)
        page.locator(".md-search-result__link").first.wait_for()
        assert "one.html" in page.locator(".md-search-result__link").first.get_attribute("href")
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "blob:", "data:"))]
