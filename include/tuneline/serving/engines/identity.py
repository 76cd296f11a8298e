"""Identity of a built engine: its files, the platform and the GPUs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tuneline.store import sha256_file


def hash_tree(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def machine_identity() -> dict[str, Any]:
    """Return the platform and the GPUs, to which built engines are tied.

    GPUs come from `nvidia-smi`: a TensorRT engine names none in its own files and fails at
    load on another compute capability.
    """
    return {
        "os": platform.system(),
        "arch": platform.machine(),
        "gpus": query_gpus(),
    }


def query_gpus() -> list[dict[str, str]]:
    """Return name, compute capability, memory and driver of each NVIDIA GPU; [] without any."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return []
    if answer.returncode != 0:
        return []
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=False)) for row in rows]
