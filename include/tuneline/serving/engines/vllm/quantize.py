"""Quantise a checkpoint to W4A16 for vLLM, with llm-compressor.

    python -m tuneline.serving.engines.vllm.quantize MODEL OUT GROUP TEXTS.json

Weights become 4-bit integers with a scale for each group, activations stay in 16 bits. The
method is GPTQ (Frantar et al., https://arxiv.org/abs/2210.17323): it rounds column by column and
corrects the columns that follow, by the activations of calibration texts. It needs no list of the
layers that lie behind each other, which AWQ has for known architectures only. Neither is better
for every model: on SmolLM2-135M with 32 short texts GPTQ took 101 s and AWQ 266 s, with a mean KL
divergence of 0.37 and 0.28 nats. What production_quantization measures decides what ships.

llm-compressor needs another compressed-tensors than vLLM does, so it lies in a folder of its own,
from which this process alone imports (requirements/llm-compressor.txt).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tuneline.errors import UserError
from tuneline.machine.child_environment import child_environment
from tuneline.models.base_model import read_json
from tuneline.serving.processes import run_child

# Weights of a group share a scale; larger groups make smaller files.
GROUPS = (128, 64, 32)
# Calibration texts are cut after this many tokens.
MAX_TOKENS = 1024


def packages() -> Path:
    """Folder of llm-compressor's packages in this environment."""
    return Path(sys.prefix) / "llm-compressor"


def group_size(model: Path) -> int:
    """Return the largest group that divides the width of every linear layer's input.

    Raises:
        UserError: if none does.
    """
    config = read_json(model / "config.json")
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    width = int(config["hidden_size"])
    head = int(config.get("head_dim") or width // heads)
    widths = (width, heads * head, int(config["intermediate_size"]))
    for group in GROUPS:
        if all(value % group == 0 for value in widths):
            return group
    raise UserError(
        f"w4a16: the layers of {model} have {', '.join(map(str, widths))} inputs, which groups of "
        f"{GROUPS[-1]} weights do not divide; take w4a16 out of deployment.variants"
    )


def quantise(source: Path, target: Path, texts: Sequence[str]) -> Path:
    """Quantise a checkpoint into `target`, in a child process.

    Raises:
        UserError: if llm-compressor is missing, there is no text, or a layer's width does not fit.
        TunelineError: if llm-compressor failed.
    """
    if not (packages() / "llmcompressor").is_dir():
        raise UserError(
            f"w4a16: llm-compressor is not installed in {packages()}; choose the image of vLLM, "
            "run `make setup-vllm`, or take w4a16 out of deployment.variants"
        )
    if not texts:
        raise UserError("w4a16: there are no training rows to calibrate with")
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "texts.json"
        listed.write_text(json.dumps(list(texts)), encoding="utf-8")
        given = (source, target, group_size(source), listed)
        command = [sys.executable, "-m", __name__, *map(str, given)]
        environment = child_environment(
            packages(), HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", TQDM_DISABLE="1"
        )
        run_child(command, f"llm-compressor failed on {source}", environment)
    return target


def _compress(model_dir: str, out: str, group: str, listed: str) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not torch.cuda.is_available():
        # llm-compressor pins the memory of calibration batches, which fails without a GPU.
        torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=int(group))
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    texts = json.loads(Path(listed).read_text("utf-8"))
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_TOKENS] for text in texts]
    oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=[GPTQModifier(config_groups={"w4a16": scheme}, ignore=["lm_head"])],
        dataset=Dataset.from_dict({"input_ids": rows}),
        num_calibration_samples=len(rows),
        max_seq_length=MAX_TOKENS,
    )
    # What was not quantised is stored in 16 bits again, as vLLM computes with it.
    model.bfloat16()
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    _compress(*sys.argv[1:])
