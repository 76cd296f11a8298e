"""The model that trains, and the processor it trains on: torch, precision, base and adapter.

Training imports torch through `load_torch`, as some of it is set before. Every process holds the
whole base and gradients are averaged (DDP), or, where it would fill a GPU, a part of every layer
(FSDP2: Zhao et al., 2023). The adapter is whole everywhere, so saving and resuming are the same.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tuneline.artifacts.training import LoraSettings
from tuneline.config import TrainingConfig
from tuneline.errors import UserError, first_line
from tuneline.machine.cores import available_cores, configured_threads
from tuneline.training.loop.processes import ProcessGroup

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The largest mmap threshold that glibc takes on 64-bit machines.
_MMAP_THRESHOLD = 32 << 20
# More than a step ever frees at once.
_TRIM_THRESHOLD = 2**31 - 1


def load_torch(threads: int, seed: int = 0) -> Any:
    """Import torch, set up for a machine that it shares with other programs, and return it.

    OpenMP workers that spin at barriers slow training tenfold as soon as anything else runs on the
    cores, so they are configured to sleep before torch loads their runtime.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Weights and rows come from the run; nothing here needs the network.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT imports bitsandbytes, which warns about kernels that only its CPU inference would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.set_seed(seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _keep_freed_memory()
    return torch


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees, in one heap, for the next step."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        mallopt(_M_ARENA_MAX, 1)


def training_threads(config: TrainingConfig) -> int:
    """Return the CPU threads of training: configured, `$TUNELINE_THREADS`, or the pod's cores."""
    return config.threads or configured_threads() or available_cores()


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if the CPU multiplies bfloat16 itself (AVX-512 BF16, AMX, or Arm's BF16).

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    if not cpuinfo.is_file():
        return False
    text = cpuinfo.read_text(encoding="ascii", errors="ignore")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    native = {"avx512_bf16", "amx_bf16", "bf16"}
    return flags is not None and not native.isdisjoint(flags[1].split())


def choose_precision(config: TrainingConfig, device: str) -> Precision:
    """Choose the arithmetic of forward and backward pass; weights that train stay float32.

    `training.precision: auto` takes bf16 wherever it is fast.
    """
    if config.qlora:
        # Its 4-bit layers compute in bf16 by definition (Dettmers et al., 2023).
        return "bf16"
    if config.precision != "auto":
        return config.precision
    return "bf16" if device == "cuda" or has_native_bf16() else "fp32"


def device_of(torch: Any) -> str:
    """Return the device that training runs on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(torch: Any, device: str, precision: Precision) -> Any:
    """Return the mixed-precision context that training and every evaluation of it share."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


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

    NF4 with QLoRA, bf16 on a GPU; float32 on a CPU, where bf16 arithmetic holds the frozen linear
    layers in bf16, as autocast would round them at every step. UserError if it can't be loaded.
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
    except (OSError, ValueError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"the base model in {path} can't be loaded: {reason}") from None
    model.config.use_cache = False
    return model


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from giving 4-bit layers a layout that has no backward pass.

    On a CPU with AVX-512 BF16 the first evaluation would change their weights to a layout for
    inference, for good (bitsandbytes 0.50, `Linear4bit.forward`).
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
    """Build the base without its weights (torch's meta device); UserError if not causal."""
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
    """Put a trained adapter on its base, ready to be evaluated; UserError if none fits."""
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
    """Write the adapter as PEFT does, without its model card; `base_name` is no local path."""
    weights = trained_weights(model)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    with suppress(FileNotFoundError):
        (folder / "README.md").unlink()
    # The name is set only now: PEFT looks it up on the hub whenever it saves.
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": base_name}, indent=1))


# Share of a GPU's memory; the rest has to hold activations, logits and the adapter's optimiser.
_WHOLE_BASE_SHARE = 0.6
_BYTES_OF_BF16 = 2


def shards_base(
    config: TrainingConfig, base: Path, group: ProcessGroup, gpu_bytes: int | None
) -> bool:
    """Return True if the processes share the weights of the base.

    `auto` shards one that would fill most of `gpu_bytes`; None on a CPU, whose memory is shared.
    """
    if group.world_size == 1 or config.qlora or config.sharding == "none":
        return False
    if config.sharding == "fsdp":
        return True
    if gpu_bytes is None:
        return False
    weights = sum(parameter.numel() for parameter in shape_model(base).parameters())
    return bool(weights * _BYTES_OF_BF16 > _WHOLE_BASE_SHARE * gpu_bytes)


def gpu_memory(torch: Any) -> int | None:
    """Return the memory of this process's GPU, bytes; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def load_sharded_base(path: Path, device: str, group: ProcessGroup) -> Any:
    """Load this process's part of the base; float32 on a CPU, bf16 on a GPU.

    UserError if the architecture has no plan for sharding, or the weights can't be loaded.
    """
    import torch
    from transformers.distributed.configuration_utils import DistributedConfig

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shared = DistributedConfig(fsdp_size=group.world_size)
    return _load(path, dtype=dtype, distributed_config=shared)


def free_gathered_weights(model: Any) -> None:
    """Let a sharded model keep only its part, as before its first forward pass.

    A pass without gradients leaves some layers whole. Saving frees them, but only on the process
    that saves: the next pass would gather them on that process alone, and hang.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
