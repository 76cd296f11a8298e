"""Decide if several training processes share the weights of the base, and load a shared base.

An adapter is small, and so are its gradients: by default every process holds the whole base and
the processes average gradients (DDP). A base that would fill a GPU is sharded instead (FSDP2: Zhao
et al., 2023, and torch's `fully_shard`): each process keeps a part of every layer and gathers the
rest when it computes the layer. The adapter stays whole on every process, so that saving, resuming
and checking are the same either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneline.config import TrainingConfig
from tuneline.errors import UserError, first_line
from tuneline.training.loop.base_weights import shape_model
from tuneline.training.processes.group import ProcessGroup

# Share of a GPU's memory; the rest has to hold activations, logits and the adapter's optimiser.
_WHOLE_BASE_SHARE = 0.6
_BYTES_OF_BF16 = 2


def shards_base(
    config: TrainingConfig, base: Path, group: ProcessGroup, gpu_bytes: int | None
) -> bool:
    """Return True if the processes share the weights of the base.

    Args:
        config: settings; `sharding: auto` shards a base that would fill most of a GPU.
        base: directory of the base model.
        group: processes that train together.
        gpu_bytes: memory of one GPU, bytes; None on a CPU, where processes share one memory.
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

    Raises:
        UserError: if the architecture has no plan for sharding, or the weights can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            distributed_config=DistributedConfig(fsdp_size=group.world_size),
        )
    except (OSError, ValueError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"the base model in {path} can't be sharded: {reason}") from None
    model.config.use_cache = False
    return model


def free_gathered_weights(model: Any) -> None:
    """Let a sharded model keep only its part, as before its first forward pass.

    A pass without gradients leaves some layers whole. Saving frees them, but only on the process
    that saves: the next pass would gather them on that process alone, and hang.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
