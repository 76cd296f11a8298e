"""Every relative link and every anchor of the Markdown files leads somewhere."""

import re
import subprocess
from functools import cache
from urllib.parse import unquote

import pytest
from tests.docs.floors import ROOT

_LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def markdown_files():
    """Markdown files that are tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return sorted(p for p in ROOT.rglob("*.md") if not set(p.parts) & {".venv-ml", ".git"})
    return sorted(ROOT / name for name in done.stdout.split() if (ROOT / name).exists())


@cache
def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        repeats = sum(1 for anchor in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor))
        found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def problems(path):
    """The links of a page that lead nowhere."""
    text = _CODE.sub("", path.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (path.parent / target).resolve() if target else path
        if not place.exists():
            yield f"{link}: there is no {place}"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield f"{link}: {place.name} has no heading #{anchor}"


@pytest.mark.parametrize("path", markdown_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert not list(problems(path))


def test_a_broken_link_and_a_broken_anchor_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#a-heading-with-code) [b](none.md) [c](other.md#b) `[d](e.md)`")
    assert [problem.split(":")[0] for problem in problems(page)] == ["none.md", "other.md#b"]
