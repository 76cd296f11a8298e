"""The lists of CONTRIBUTING.md name files that are there, and its examples are in them."""

import re

import pytest
from tests.docs.floors import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
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
    text = PAGE.split(f"\n## Add {title}\n")[1].split("\n## ")[0]
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


def test_every_target_of_make_that_the_page_names_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)", PAGE)) <= set(targets)


def test_the_linter_has_one_version_everywhere():
    files = ["lint.txt", "ml.constraints.txt", "airflow.constraints.txt"]
    texts = [(ROOT / "requirements" / name).read_text() for name in files]
    assert len({re.search(r"^ruff==(\S+)", text, re.MULTILINE).group(1) for text in texts}) == 1
