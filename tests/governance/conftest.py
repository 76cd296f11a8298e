"""Fixtures of the governance tests: runs with what the earlier steps leave."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_models import make_model

from tuneline.catalogue import ITEMS
from tuneline.evidence import measure

CLEAN_CODE = {"commit": "c0ffee" * 6, "dirty": False, "note": "a clean checkout"}
HOLDS = measure("limit_holds", True, "flag", "==", True)
BROKEN = measure("limit_holds", False, "flag", "==", True)
WEIGHTS_SHA256 = sha256(b"weights").hexdigest()
MEASURED = measure("candidate_sha256", WEIGHTS_SHA256, "sha256")
# Files that lineage ships, by the step that leaves them.
SHIPPED: dict[str, dict[str, str]] = {
    "production_quantization": {
        "model.gguf": "weights",
        "choice.json": json.dumps({"variant": "f16", "sha256": WEIGHTS_SHA256}),
    },
    "export_candidate": {"merged/tokenizer.json": "{}"},
    "final_audit": {
        "dataset.json": json.dumps({"version": "d" * 64, "rows": 106}),
        "dataset_card.md": "# Dataset",
    },
    "lora_selection": {"lora.json": '{"r": 16}'},
    "gradient_accumulation": {"plan.json": '{"micro_batch": 4}'},
    "train": {"adapter/adapter_config.json": "{}", "adapter/adapter_model.safetensors": "adapter"},
    "extraction_audit": {},
    "build_engine": {"identity.json": '{"engine": "llama_cpp"}', "engine.json": "{}"},
}


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Lab]:
    """Make a run with the given settings above the defaults."""
    return lambda overrides=None, run_id="test": Lab(tmp_path, overrides or {}, run_id)


@pytest.fixture
def served_lab(tiny_lab: Callable[..., Lab]) -> Callable[..., Lab]:
    """Make a run of the tiny models whose throughput was measured."""

    def make(**overrides: Any) -> Lab:
        lab = tiny_lab(**{"deployment": {"context_tokens": 256}, **overrides})
        speed = measure("peak_tokens_per_s", 200.0, "tokens/s", ">", 0)
        lab.leave("latency_benchmark", {}, [speed])
        return lab

    return make


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that nobody asks anything."""
    folder = tmp_path_factory.mktemp("random-base")
    make_model(folder)
    return folder


@pytest.fixture
def finished_lab(
    make_lab: Callable[..., Lab],
    random_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Lab]:
    """Make a run of which every step before lineage is done and every limit holds."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path_factory.getbasetemp() / "tiny-cache"))
    monkeypatch.setattr("tuneline.environment.own_code", lambda: CLEAN_CODE)

    def make(
        code: dict[str, Any] = CLEAN_CODE,
        without: str | None = None,
        run_id: str = "test",
        **overrides: Any,
    ) -> Lab:
        lab = make_lab({"base_model": str(random_base), **overrides}, run_id)
        lab.run.meta.update(code=code, started_by="alice")
        items = [item.id for item in ITEMS if item.id != "lineage"]
        for step in dict.fromkeys([*items, *SHIPPED]):
            if step != without:
                lab.leave(step, SHIPPED.get(step, {}), [HOLDS, MEASURED])
        return lab

    return make
