"""A checkpoint's files in the form that transformers 4 reads, which TensorRT-LLM 1.2 is pinned to.

transformers 5 keeps the rotary base in `rope_parameters`. transformers 4 does not look there and
takes 10000, without a word, so a converted engine would answer fluently and wrong. It does not know
the tokenizer class `TokenizersBackend` either, and refuses special tokens in a list.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import is_weights, model_files, read_json

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_WEIGHTS_INDEX = "model.safetensors.index.json"


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the fields that transformers 4 reads beside those of 5.

    Raises:
        UserError: if the rotary embedding differs between layers, which 4 has no field for.
    """
    found = dict(config)
    if "dtype" in found:
        found.setdefault("torch_dtype", found["dtype"])
    rope = found.get("rope_parameters")
    if not rope:
        return found
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(
            "the model's layers have different rotary embeddings, which the engine path of "
            "TensorRT-LLM can't be told; use deployment.engine: tensorrt_llm_pytorch"
        )
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        found["rope_scaling"] = scaling
    return found


def portable_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json that transformers 4 loads as the same tokenizer."""
    found = {name: value for name, value in config.items() if name != "backend"}
    if found.get("tokenizer_class") in (None, "TokenizersBackend"):
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found


def copy_portable(source: Path, target: Path, *, weights: bool) -> None:
    """Copy a checkpoint in the form that transformers 4 reads.

    Args:
        source: the checkpoint.
        target: folder to write.
        weights: whether the weights are linked into the copy; otherwise it has none.
    """
    target.mkdir(parents=True)
    for path in model_files(source):
        if is_weights(path.name) or path.name == _WEIGHTS_INDEX:
            if weights:
                (target / path.name).symlink_to(path.resolve())
        elif path.name == CONFIG:
            _write(target / CONFIG, portable_config(read_json(path)))
        elif path.name == TOKENIZER_CONFIG:
            _write(target / TOKENIZER_CONFIG, portable_tokenizer_config(read_json(path)))
        else:
            shutil.copyfile(path, target / path.name)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
