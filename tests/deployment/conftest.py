"""Fixtures of the deployment items' tests: a run that export_candidate has finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_task import TinyModels, task_rows


def files_below(folder: Path, name: str) -> dict[str, Path]:
    """The files of a folder as artifacts below another name."""
    return {f"{name}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture
def exported_lab(
    tiny_models: TinyModels,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Lab]:
    """Make a run of the tiny models; files of a step may be replaced by name."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.getbasetemp() / "tiny-cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")

    def make(replaced: dict[str, Path] | None = None, **overrides: Any) -> Lab:
        lab = Lab(tmp_path, {"base_model": str(tiny_models.base), **overrides})
        lab.leave_dataset(task_rows({"train": 60, "validation": 30, "holdout": 16}))
        lab.leave("train", files_below(tiny_models.adapter, "adapter"))
        exported = {
            **files_below(tiny_models.merged, "merged"),
            "candidate.gguf": tiny_models.candidate_gguf,
            "adapter.gguf": tiny_models.adapter_gguf,
        }
        lab.leave("export_candidate", {**exported, **(replaced or {})})
        lab.leave_shipped(tiny_models.candidate_gguf)
        return lab

    return make
