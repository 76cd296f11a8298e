"""Fixtures of the deployment items' tests: a run that export_candidate has finished."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_task import INTENTS, TinyModels, conversation


def files_below(folder: Path, name: str) -> dict[str, Path]:
    """The files of a folder as artifacts below another name."""
    return {f"{name}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


def exported(models: TinyModels, replaced: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """The files that export_candidate leaves for llama.cpp; some may be replaced by name."""
    return {
        **files_below(models.merged, "merged"),
        "candidate.gguf": models.candidate_gguf,
        "adapter.gguf": models.adapter_gguf,
        **(replaced or {}),
    }


def right_share(
    answers: Iterable[str], numbers: Iterable[int], intents: Mapping[str, str] = INTENTS
) -> float:
    """The share of questions of the tiny task that were answered with the right intent."""
    right = []
    for number, text in zip(numbers, answers, strict=True):
        try:
            right.append(json.loads(text)["intent"] == conversation(number, intents)[1])
        except (ValueError, KeyError):
            right.append(False)
    return sum(right) / len(right)


@pytest.fixture
def exported_lab(tiny_lab: Callable[..., Lab], tiny_models: TinyModels) -> Callable[..., Lab]:
    """Make a run of the tiny models; files of a step may be replaced by name."""

    def make(replaced: dict[str, Path] | None = None, **overrides: Any) -> Lab:
        lab = tiny_lab(**overrides)
        lab.leave("train", files_below(tiny_models.adapter, "adapter"))
        lab.leave("export_candidate", exported(tiny_models, replaced))
        return lab

    return make
