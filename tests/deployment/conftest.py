"""Fixtures of the deployment items' tests: a run that export_candidate has finished."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_task import TinyModels


def files_below(folder: Path, name: str) -> dict[str, Path]:
    """The files of a folder as artifacts below another name."""
    return {f"{name}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture
def exported_lab(tiny_lab: Callable[..., Lab], tiny_models: TinyModels) -> Callable[..., Lab]:
    """Make a run of the tiny models; files of a step may be replaced by name."""

    def make(replaced: dict[str, Path] | None = None, **overrides: Any) -> Lab:
        lab = tiny_lab(**overrides)
        lab.leave("train", files_below(tiny_models.adapter, "adapter"))
        exported = {
            **files_below(tiny_models.merged, "merged"),
            "candidate.gguf": tiny_models.candidate_gguf,
            "adapter.gguf": tiny_models.adapter_gguf,
        }
        lab.leave("export_candidate", {**exported, **(replaced or {})})
        return lab

    return make
