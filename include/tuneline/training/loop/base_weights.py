"""Load the base model for training, plain or in 4-bit NF4, and put the adapter on it.

Weights are loaded here alone, so that the memory probe, training, the checks after it and the
export all see the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import LoraSettings
from tuneline.errors import UserError, first_line
from tuneline.training.loop.compute import Precision


def nf4_config() -> Any:
    """Return the settings of QLoRA as published: NF4, double quantisation, computing in bf16.

    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
    """
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_base(path: Path, device: str, *, qlora: bool = False, precision: Precision) -> Any:
    """Load the base model for training or for measuring what was trained.

    Without QLoRA the weights are float32 on a CPU, where bf16 arithmetic holds the frozen linear
    layers in bf16, as autocast would round them at every step. On a GPU they are bf16. With QLoRA
    they are NF4.

    Raises:
        UserError: if the weights can't be loaded as a causal language model.
    """
    import torch

    if qlora:
        quantised = _load(path, dtype=torch.bfloat16, quantization_config=nf4_config())
        keep_gradients(quantised)
        return quantised
    model = _load(path, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    if device == "cpu" and precision == "bf16":
        cast_frozen_linears(model)
    return model.to(device)


def load_unquantised(path: Path) -> Any:
    """Load the base model in float32, for merging and exact comparison."""
    import torch

    return _load(path, dtype=torch.float32)


def _load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"the base model in {path} can't be loaded: {reason}") from None
    model.config.use_cache = False
    return model


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from giving 4-bit layers a layout that has no backward pass.

    On a CPU with AVX-512 BF16 the first evaluation would change their weights to a layout for
    inference, for good: the scales lose their own quantisation, and training after it gets no
    gradient through these layers (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def cast_frozen_linears(model: Any) -> None:
    """Hold the weights of linear layers in bf16; embeddings, norms and the head stay.

    Autocast rounds these weights to bf16 before every product anyway, so the results are the
    same; a forward pass saves the rounding and the memory of a second copy.
    """
    import torch

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.to(torch.bfloat16)


def shape_model(path: Path) -> Any:
    """Build the base model without its weights (on torch's meta device), for counting.

    Raises:
        UserError: if its configuration is not that of a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise UserError(f"the base model in {path} can't be built: {reason}") from None
    model.config.use_cache = False
    return model


def linear_modules(model: Any) -> list[str]:
    """Return the full names of the linear layers that can carry an adapter: all but the head."""
    import torch

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def attach_lora(model: Any, lora: LoraSettings) -> Any:
    """Put a fresh adapter on the base, a model of `load_base` or `shape_model`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def attention_of(model: Any) -> str:
    """Return the name of a model's attention in transformers; empty if the model names none."""
    return str(getattr(model.config, "_attn_implementation", None) or "")


def use_attention(model: Any, attention: str) -> None:
    """Let a model with an adapter compute attention with another implementation."""
    if attention != attention_of(model):
        model.get_base_model().set_attn_implementation(attention)


@contextmanager
def attention_for(model: Any, attention: str) -> Iterator[None]:
    """Let a model compute attention with another implementation for a while.

    No backward pass may cross the end of the block: checkpointing would compute it again with
    the other one.
    """
    before = attention_of(model)
    use_attention(model, attention)
    try:
        yield
    finally:
        use_attention(model, before)


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a trained adapter on its base, ready to be evaluated.

    Raises:
        UserError: if the folder holds no adapter that fits.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"the adapter can't be put on the base model: {reason}") from None


def trained_weights(model: Any) -> dict[str, Any]:
    """Return the weights that train, by name: the adapter without the base."""
    return {
        name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad
    }


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Write the adapter as PEFT does, without its model card.

    Args:
        model: a model with an adapter.
        folder: folder for the files.
        base_name: name of the base in the adapter's settings: the URI, never a local path.
    """
    weights = trained_weights(model)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    with suppress(FileNotFoundError):
        (folder / "README.md").unlink()
    # The name is set only now: PEFT looks it up on the hub whenever it saves.
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": base_name}, indent=1))


def module_kinds(names: Sequence[str]) -> list[str]:
    """Return the last parts of module names, each once, in order of appearance."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
