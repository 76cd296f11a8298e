"""Fixtures of the evaluation items' tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_task import save, task_rows

SPLITS = {"train": 240, "validation": 30, "holdout": 48}


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    """Make a run; keyword arguments are configuration sections."""
    return lambda **overrides: Lab(tmp_path, overrides)


@pytest.fixture
def scored_lab(tiny_lab: Callable[..., Lab]) -> Callable[..., Lab]:
    """Make a run of the tiny models with enough rows for narrow intervals.

    The tuned one knows one of its three classes worse than the others, at the edge of chance; a
    part counts as worse only if it is wrong throughout, unless a test says otherwise.
    """

    def make(rows: Any = None, evaluation: dict[str, Any] | None = None, **options: Any) -> Lab:
        settings = {"slices": {"worse_by": 1.0}, **(evaluation or {})}
        return tiny_lab(rows or task_rows(SPLITS), evaluation=settings, **options)

    return make


@pytest.fixture(scope="session")
def silent_gguf(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny base's vocabulary that ends every answer before its first word."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tuneline.gguf.export import export_gguf

    folder = tmp_path_factory.mktemp("silent")
    model = AutoModelForCausalLM.from_pretrained(tiny_models.base, dtype=torch.float32)
    head = model.get_output_embeddings().weight
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    # Both end an answer, and one of the two opposite rows wins whatever the input is.
    head.data[end] = 300 * head.data[end]
    head.data[pad] = -head.data[end]
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.base)
    save(model, tokenizer, folder / "hf")
    return export_gguf(folder / "hf", folder / "silent.gguf").path
