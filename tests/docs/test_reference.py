"""The generated pages are current, and nothing is missing from what they are made of."""

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tuneline.config import PipelineConfig
from tuneline.machine.environment_variables import VARIABLES, seconds_from

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(p for d in ("include", "dags", "plugins", "scripts") for p in (ROOT / d).rglob("*")),
    *(ROOT / "benchmarks").rglob("*.py"),
]
COMPOSE = [ROOT / "docker-compose.yaml", *(ROOT / "docker").rglob("*")]
TABLE = ROOT / "include" / "tuneline" / "machine" / "environment_variables.py"


def names_in(paths):
    """The variables of ours that files name; a name that ends in _ is the start of one."""
    found = set()
    for path in paths:
        if path.is_file() and path != TABLE and "__pycache__" not in path.parts:
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
        for name, field in model.model_fields.items():
            section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert section or field.description, f"{model.__name__}.{name} has no description"


def test_every_variable_that_the_code_names_is_in_the_table():
    known = {variable.name for variable in VARIABLES}
    assert names_in(SOURCES) | names_in(COMPOSE) == known


def test_variables_of_compose_alone_are_named_there():
    alone = {v.name for v in VARIABLES if v.readers == ("docker-compose.yaml",)}
    assert alone == alone & names_in(COMPOSE)
    assert not alone & names_in(SOURCES)


def test_each_variable_stands_once():
    names = [variable.name for variable in VARIABLES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("value", "seconds"), [("", 20), ("1.5", 1.5), ("soon", 20), ("-3", 20)])
def test_a_duration_falls_back_to_its_default(monkeypatch, caplog, value, seconds):
    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", value)
    assert seconds_from("TUNELINE_RETRY_SECONDS") == seconds
    assert bool(caplog.records) == (value in ("soon", "-3"))
