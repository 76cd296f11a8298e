"""Stand-in of convert_checkpoint.py and quantize.py: a checkpoint's weights as GGUF."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.lab.trtllm.parser import parse_own

# Of transformers 4, where config.json has no `rope_theta`; `rope_parameters` is not looked at.
_ROPE_DEFAULT = 10000.0
# What a method is called in an engine, and a quantisation of llama.cpp that loses about as much.
_METHODS = {
    "int4_awq": ("W4A16_AWQ", "q4_0"),
    "int8_sq": ("W8A8_SQ_PER_CHANNEL", "q8_0"),
    "fp8": ("FP8", "q8_0"),
    "nvfp4": ("NVFP4", "q4_0"),
}


def export(model: Path, target: Path) -> dict[str, Any]:
    """Write the weights as transformers 4 would load them; return that config."""
    from tuneline.gguf.export import export_gguf

    config = json.loads((model / "config.json").read_text())
    config.pop("rope_parameters", None)
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    theta = config.get("rope_theta", _ROPE_DEFAULT)
    with tempfile.TemporaryDirectory() as scratch:
        for path in model.iterdir():
            (Path(scratch) / path.name).symlink_to(path.resolve())
        (Path(scratch) / "config.json").unlink()
        read = {**config, "rope_parameters": {**scaling, "rope_theta": theta}}
        (Path(scratch) / "config.json").write_text(json.dumps(read))
        if scale := os.environ.get("TRTLLM_LAB_NORM"):
            spoil_norm(Path(scratch) / "model.safetensors", float(scale))
        export_gguf(Path(scratch), target)
    return config


def spoil_norm(path: Path, scale: float) -> None:
    """Scale the last norm, as a converter that reads it wrongly."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(path)
    weights["model.norm.weight"] *= scale
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})


def check_calibration(arguments: Any) -> None:
    """Refuse what quantize.py can't calibrate on."""
    folder = Path(arguments.calib_dataset or "cnn_dailymail")
    if not folder.is_dir():
        raise SystemExit(f"ConnectionError: Couldn't reach '{folder}' on the Hub")
    # As `load_dataset(folder, split="train")["text"][:calib_size]`.
    rows = [json.loads(line)["text"] for line in (folder / "train.jsonl").open()]
    if not rows[: arguments.calib_size or 512]:
        raise SystemExit("IndexError: the calibration dataset is empty")
    hidden = json.loads((Path(arguments.model_dir) / "config.json").read_text())["hidden_size"]
    if arguments.qformat == "int4_awq" and hidden % (arguments.awq_block_size or 128):
        raise SystemExit(f"AssertionError: {hidden} is not a multiple of the AWQ block size")


def main() -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from tuneline.gguf.export import quantize

    arguments = parse_own(Path(sys.argv[0]).name)
    method = getattr(arguments, "qformat", None)
    if method is not None:
        check_calibration(arguments)
    algorithm, kind = _METHODS.get(method, (None, None))
    target = Path(arguments.output_dir)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "f16.gguf"
        config = export(Path(arguments.model_dir), gguf)
        if kind is not None:
            gguf = quantize(gguf, Path(scratch) / "made.gguf", kind).path
        tensors = {"gguf": np.frombuffer(gguf.read_bytes(), np.uint8)}
        save_file(tensors, target / "rank0.safetensors")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
    document = {
        "architecture": config["architectures"][0],
        "dtype": arguments.dtype or "float16",
        **{name: config[name] for name in names},
        "mapping": {"world_size": 1, "tp_size": arguments.tp_size or 1},
        "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": None},
    }
    (target / "config.json").write_text(json.dumps(document, indent=1))


def read_engine(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """An engine's config.json, the header of its plan, and its weights."""
    config = json.loads((folder / "config.json").read_text())
    header, _, gguf = (folder / "rank0.engine").read_bytes().partition(b"\n")
    return config, json.loads(header), gguf


if __name__ == "__main__":
    main()
