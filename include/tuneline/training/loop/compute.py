"""The processor that training runs on: threads, precision, allocator.

Some of it must be set before torch is imported, so the training modules import torch through
`load_torch`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from tuneline.config import TrainingConfig
from tuneline.machine.cores import available_cores, configured_threads

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The largest mmap threshold that glibc takes on 64-bit machines.
_MMAP_THRESHOLD = 32 << 20
# More than a step ever frees at once.
_TRIM_THRESHOLD = 2**31 - 1


def load_torch(threads: int, seed: int = 0) -> Any:
    """Import torch, set up for a machine that it shares with other programs.

    OpenMP workers that spin at barriers slow training tenfold as soon as anything else runs on
    the cores, so they are configured to sleep before torch loads their runtime.

    Args:
        threads: number of CPU threads.
        seed: seed of every random generator.

    Returns:
        The module torch.
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
    """Let glibc keep the memory that a training step frees, in one heap, for the next step.

    Returning gigabytes and faulting them in again at every step costs up to a tenth of the time
    on a CPU; the fragmentation of one heap per thread costs a tenth of the memory.
    """
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
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
    return False


def choose_precision(config: TrainingConfig, device: str) -> Precision:
    """Choose the arithmetic of forward and backward pass; weights that train stay float32.

    Args:
        config: settings; `precision: auto` takes bf16 wherever it is fast.
        device: "cuda" or "cpu".

    Returns:
        The precision.
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
