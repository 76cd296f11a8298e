"""export_candidate: merge the adapter and write the files that can be served.

The adapter is merged into the unquantised base in float32, also after QLoRA: merging into 4-bit
weights loses quality (peft#2321, transformers#31293). The merged weights are rounded to f16 once.
Where llama.cpp ships, the GGUF is made from those same values, so that both files are one model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import ADAPTER, ADAPTER_GGUF, CANDIDATE_GGUF, MERGED
from tuneline.bases import base_of
from tuneline.errors import TunelineError
from tuneline.evidence import Measurement, Record, measure
from tuneline.serving.engines import get_engine
from tuneline.step_context import StepContext
from tuneline.training.loop.model import (
    load_adapter,
    load_torch,
    load_unquantised,
    training_threads,
)


def merge(base: Path, adapter: Path) -> Any:
    """Merge an adapter into the unquantised base, in float32; TunelineError if it gets NaNs."""
    tuned = load_adapter(load_unquantised(base), adapter)
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise TunelineError(f"the merged weights are broken: {error}") from None


def to_half(model: Any) -> float:
    """Round a model's weights to f16 in place; the largest absolute change, or TunelineError."""
    import torch

    largest = 0.0
    for name, parameter in model.named_parameters():
        half = parameter.data.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise TunelineError(f"{name} holds values beyond f16's range; export it in bf16")
        largest = max(largest, float((half.float() - parameter.data).abs().max()))
        parameter.data = half
    model.config.dtype = torch.float16
    return largest


def save_merged(model: Any, tokenizer: Any, template: str, folder: Path) -> None:
    """Write a model directory that stands alone: weights, tokenizer, chat template."""
    model.config.use_cache = True
    # It would name a local path.
    model.config._name_or_path = ""
    model.save_pretrained(str(folder))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))


def export_for_llama_cpp(
    ctx: StepContext, adapter: Path, base: Path, written: list[str]
) -> list[Measurement]:
    """Write the merged model and the adapter as GGUF; add the names of the files to `written`."""
    from tuneline.gguf.export import export_gguf, export_lora_gguf

    ctx.log("writing the GGUF files")
    candidate = export_gguf(MERGED.path(ctx), CANDIDATE_GGUF.path(ctx), "f16")
    written.append(CANDIDATE_GGUF.name)
    found = [measure("gguf_rounded_values", candidate.rounded_values, "values")]
    if json.loads((adapter / "adapter_config.json").read_text()).get("use_dora"):
        ctx.log("llama.cpp has no DoRA adapters: adapter.gguf is not written")
        return found
    export_lora_gguf(adapter, base, ADAPTER_GGUF.path(ctx))
    written.append(ADAPTER_GGUF.name)
    return found


def run(ctx: StepContext) -> Record:
    """Merge and export; writes `merged/`, for llama.cpp also `candidate.gguf`, `adapter.gguf`."""
    adapter = ADAPTER.fetch(ctx)
    load_torch(training_threads(ctx.config.training))
    from tuneline.data.rendering.renderer import chat_template
    from tuneline.models import load_tokenizer

    base = base_of(ctx)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    ctx.log("merging the adapter into the unquantised base in float32")
    model = merge(base.path, adapter)
    rounding = to_half(model)
    tokenizer = load_tokenizer(base.path)
    template = chat_template(tokenizer, ctx.config.data.target_format)
    save_merged(model, tokenizer, template, MERGED.path(ctx))
    measurements = [measure("rounding_to_f16", rounding, "absolute")]
    del model
    written = ["merged/"]
    if get_engine(ctx.config.deployment.engine).form == "gguf":
        measurements += export_for_llama_cpp(ctx, adapter, base.path, written)
    return ctx.record(
        f"merged in float32, rounded to f16 (largest change {rounding:.1e}); "
        f"{', '.join(written)} written",
        measurements,
    )
