"""Fixtures of the evaluation items' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_task import task_rows


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    """Make a run; keyword arguments are configuration sections."""

    def make(**overrides: Any) -> Lab:
        return Lab(tmp_path, overrides)

    return make


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests, so that the tiny base is exported and asked once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def scored_lab(
    lab: Callable[..., Lab],
    tiny_models: Any,
    model_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., Lab]:
    """Make a run whose dataset and shipped bytes are there already."""
    monkeypatch.setenv("TUNELINE_CACHE", str(model_cache))
    monkeypatch.setenv("TUNELINE_THREADS", "1")

    def make(
        rows: list[dict[str, Any]] | None = None, model: Path | None = None, **overrides: Any
    ) -> Lab:
        bench = lab(**{"base_model": str(tiny_models.base), **overrides})
        bench.leave_dataset(rows or task_rows({"train": 240, "validation": 30, "holdout": 48}))
        bench.leave_shipped(model or tiny_models.candidate_gguf)
        return bench

    return make
