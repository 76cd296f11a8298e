"""The generated pages are current, and nothing is missing from what they are made of."""

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tuneline.config import PipelineConfig
from tuneline.config.section import described

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(p for d in ("include", "dags", "scripts") for p in (ROOT / d).rglob("*")),
    *(ROOT / "benchmarks").rglob("*.py"),
]
COMPOSE = [ROOT / "docker-compose.yaml", *(ROOT / "docker").rglob("*")]
PAGE = ROOT / "docs" / "reference" / "environment.md"


def names_in(paths):
    """The variables of ours that files name; a name that ends in _ is the start of one."""
    found = set()
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="ignore")
            found |= set(re.findall(r"\bTUNELINE_[A-Z_]+\b", text))
    return found


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_current(reference):
    for path, text in reference.pages().items():
        current = path.read_text(encoding="utf-8") == text
        assert current, f"{path.name} is not current; run `make docs`"


def models(model):
    """A model and all models below it."""
    yield model
    for field in model.model_fields.values():
        for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from models(part)


def test_every_setting_is_described():
    for model in models(PipelineConfig):
        for name, field in described(model).items():
            section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert section or field.description, f"{model.__name__}.{name} has no description"


def test_the_page_of_variables_names_those_of_the_code_and_no_others():
    listed = re.findall(r"^\| `(TUNELINE_[A-Z_]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert names_in(SOURCES) | names_in(COMPOSE) == set(listed)
