"""The stand-in's weights: a checkpoint as the release's transformers reads it, as GGUF."""

import json
import tempfile
from pathlib import Path
from typing import Any

# Of transformers 4, where config.json has no `rope_theta`; `rope_parameters` is not looked at.
_ROPE_DEFAULT = 10000.0


def config_as_transformers_4_reads_it(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the rotary embedding that transformers 4 would compute."""
    seen = {name: value for name, value in config.items() if name != "rope_parameters"}
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    theta = config.get("rope_theta", _ROPE_DEFAULT)
    return {**seen, "rope_parameters": {**scaling, "rope_theta": theta}}


def export(model: Path, target: Path) -> dict[str, Any]:
    """Write a checkpoint's weights as GGUF; its config."""
    from tuneline.gguf.export import export_gguf

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        copy.mkdir()
        for path in model.iterdir():
            (copy / path.name).symlink_to(path.resolve())
        (copy / "config.json").unlink()
        config = config_as_transformers_4_reads_it(json.loads((model / "config.json").read_text()))
        (copy / "config.json").write_text(json.dumps(config))
        export_gguf(copy, target)
    return config


def write_checkpoint(target: Path, gguf: Path, config: dict[str, Any], arguments: Any) -> None:
    """Write a TensorRT-LLM checkpoint folder."""
    import numpy as np
    from safetensors.numpy import save_file

    target.mkdir(parents=True)
    tensors = {"gguf": np.frombuffer(gguf.read_bytes(), np.uint8)}
    save_file(tensors, target / "rank0.safetensors")
    algorithms = {
        "int4_awq": "W4A16_AWQ",
        "int8_sq": "W8A8_SQ_PER_CHANNEL",
        "fp8": "FP8",
        "nvfp4": "NVFP4",
    }
    method = getattr(arguments, "qformat", None)
    tp = arguments.tp_size or 1
    document = {
        "architecture": config["architectures"][0],
        "dtype": arguments.dtype or "float16",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "max_position_embeddings": config["max_position_embeddings"],
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1, "cp_size": 1},
        "quantization": {"quant_algo": algorithms.get(method), "kv_cache_quant_algo": None},
    }
    (target / "config.json").write_text(json.dumps(document, indent=1))


def read_engine(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """An engine's config.json, the header of its plan, and its weights."""
    config = json.loads((folder / "config.json").read_text())
    header, _, gguf = (folder / "rank0.engine").read_bytes().partition(b"\n")
    return config, json.loads(header), gguf
