"""The pages: lists name files that are there, words are plain English."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# The lists, and those of their files in which the example that one follows is named.
LISTS = {
    "an item": ["catalogue.py", "suites.py", "test_deduplication.py", "docs/data.md"],
    "an engine": ["vllm/engine.py", "__init__.py", "architectures.json", "test_engine_registry.py"],
    "a row format": ["formats.py", "config/data.py", "test_formats.py", "docs/your-data.md"],
    "a metric": ["asking/tasks.py", "config/evaluation.py", "test_tasks.py"],
    "a benchmark": ["contest/command.py", "test_dedup.py", "docs/benchmarks.md"],
}


def section(title):
    """The example of a section, and the files that its list names."""
    text = CONTRIBUTING.split(f"\n## Add {title}\n")[1].split("\n## ")[0]
    example = re.search(r"Follow `(\w+)`", text).group(1)
    return example, re.findall(r"\]\(([^)#]+)\)", text)


@pytest.mark.parametrize("title", LISTS)
def test_every_file_of_the_list_is_there(title):
    _, files = section(title)
    assert files
    for name in files:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("title", LISTS)
def test_the_example_is_in_the_files_that_name_things(title):
    example, files = section(title)
    for ending in LISTS[title]:
        name = next(name for name in files if name.endswith(ending))
        assert example in (ROOT / name).read_text(encoding="utf-8").lower(), name


def test_the_linter_has_one_version_everywhere():
    files = ["lint.txt", "ml.constraints.txt", "airflow.constraints.txt"]
    texts = [(ROOT / "requirements" / name).read_text() for name in files]
    assert len({re.search(r"^ruff==(\S+)", text, re.MULTILINE).group(1) for text in texts}) == 1


# A word, and what to write in its place.
WORDS = {
    r"beside": "next to, in addition to, while … runs",
    r"told": "reported, informed, distinguished",
    r"mend(?:s|ed|ing)?": "fix",
    r"bears?": "carries, allows, is recorded under",
    r"at work": "running",
    r"(?:stands?|stood) (?:in|for|there|beside)": "is in, means, takes the place of",
    r"(?:lies|lie|lay) (?:in|on|there)": "is in",
    r"take(?:s|n)? over": "loads, applies",
    r"alike": "the same, in the same way",
    r"nobody": "no one, or the passive voice",
    r"(?:is|are|was|were) no (?!longer|more than|less than|later than|one\b)": "is not a",
}
PATTERN = re.compile(
    "|".join(rf"\b{word}\b" if word[-1] != ")" else rf"\b{word}" for word in WORDS)
)
PAGES = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
CODE = [path for folder in ("include", "dags") for path in (ROOT / folder).rglob("*.py")]


def messages(path):
    """The strings of a module that people may read: those with a space that are no docstring."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in docstrings else None
        if isinstance(text, str) and " " in text:
            yield node.lineno, text


def stumbling(text):
    """The words in a text that are listed, with a few around each; "there is no run" is plain."""
    for match in PATTERN.finditer(text):
        around = text[max(0, match.start() - 30) : match.end() + 20]
        if not re.search(r"\b[Tt]here (?:is|are|was|were) no ", around):
            yield around


def test_pages_are_free_of_them():
    assert not [
        f"{path.name}: …{around}…"
        for path in PAGES
        for around in stumbling(path.read_text("utf-8"))
    ]


@pytest.mark.parametrize("folder", ["include/tuneline", "include/localpods", "dags"])
def test_messages_are_free_of_them(folder):
    assert not [
        f"{path.relative_to(ROOT)}:{line}: …{around}…"
        for path in CODE
        if path.is_relative_to(ROOT / folder)
        for line, text in messages(path)
        for around in stumbling(text)
    ]
