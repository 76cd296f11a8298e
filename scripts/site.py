"""Build the documentation as a site: the Markdown files of the repository, in the order of
docs/README.md, into .tuneline/site.

Needs .venv-dev alone. Ends with 1, and names the place, if a link or an anchor leads nowhere or a
page of docs/ is not in docs/README.md. The site loads nothing from elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README.md"
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#:]+)(?=[)#\s])", re.MULTILINE)
_FENCED = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^\*\*(.+?)\*\*|^- \[(.+?)\]\((.+?)\)", re.MULTILINE)


def main() -> int:
    """Assemble the pages and build them; return the exit code."""
    root = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT
    source = root / ".tuneline" / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    for page in markdown_files(root):
        copy_page(root, page, source)
    copy_file(root, root / "docs" / "iframe-worker.js", source)
    drawn = root / ".tuneline" / "mermaid.min.js"
    (source / "mermaid.js").write_bytes(drawn.read_bytes() if drawn.exists() else b"")
    settings = {
        "INHERIT": str(root / "docs" / "mkdocs.yml"),
        "docs_dir": str(source),
        "site_dir": str(root / ".tuneline" / "site"),
        "nav": list(navigation(root)),
    }
    config = source.with_name("mkdocs.yml")
    config.write_text(json.dumps(settings))
    # Without its script a diagram is shown as text, and not looked for on another server.
    environment = {**os.environ, "DIAGRAM": "mermaid" if drawn.exists() else "diagram"}
    environment |= {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    return subprocess.run(command, env=environment, check=False).returncode


def markdown_files(root: Path) -> list[str]:
    """Return the Markdown files that are tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:  # a checkout without git
        found = (path.relative_to(root) for path in root.rglob("*.md"))
        return [path.as_posix() for path in found if not str(path).startswith(".")]
    return [name for name in done.stdout.split() if (root / name).exists()]


def copy_page(root: Path, name: str, source: Path) -> None:
    """Copy a page, and the files that it links to; a link to a folder leads to a page about it."""
    here = (root / name).parent

    def place(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / unquote(match[2])))
        if not target.is_relative_to(root) or not target.exists():
            return match[0]
        if target.is_dir():
            return f"{match[1]}{match[2].rstrip('/')}/{copy_folder(root, target, source)}"
        if target.suffix != ".md":
            copy_file(root, target, source)
        return match[0]

    parts = _FENCED.split((root / name).read_text(encoding="utf-8"))
    parts[::2] = [_LINK.sub(place, part) for part in parts[::2]]
    write(source / name, "".join(parts))


def copy_folder(root: Path, folder: Path, source: Path) -> str:
    """Return the name of a folder's page: its README, or a list of its files."""
    if (folder / "README.md").exists():
        return "README.md"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        copy_file(root, path, source)
    listed = "\n".join(f"- [{path.name}]({path.name})" for path in files)
    write(
        source / folder.relative_to(root) / "files.md",
        f"# {folder.relative_to(root)}\n\n{listed}\n",
    )
    return "files.md"


def copy_file(root: Path, path: Path, source: Path) -> None:
    """Copy a file that is not a page."""
    to = source / path.relative_to(root)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def write(path: Path, text: str) -> None:
    """Write a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def navigation(root: Path) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield the sections of docs/README.md with their pages."""
    pages: list[dict[str, str]] = []
    for title, text, link in _ENTRY.findall((root / INDEX).read_text(encoding="utf-8")):
        if title:
            pages = []
            yield {title: pages}
        elif ":" not in link:
            place = (root / "docs" / link).resolve()
            if place.is_dir():
                place /= "README.md" if (place / "README.md").exists() else "files.md"
            pages.append({text: place.relative_to(root).as_posix()})


if __name__ == "__main__":
    sys.exit(main())
