"""Identity of a built engine: its files, the platform and the GPUs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.models.base_model import digest_of
from tuneline.store import sha256_file


def hash_tree(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def hash_files(path: Path) -> tuple[str, dict[str, str]]:
    """Return one hash of a file or a folder, and the SHA-256 of each file by name."""
    files = {path.name: sha256_file(path)} if path.is_file() else hash_tree(path)
    return whole_digest(path, files), files


def whole_digest(path: Path, files: Mapping[str, str]) -> str:
    """Return one hash of a file, or of a folder: that of the list of its files' hashes.

    Args:
        path: the file or folder.
        files: the SHA-256 of each file by name.
    """
    return files[path.name] if path.is_file() else digest_of(files)


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
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    return [dict(zip(fields, row, strict=False)) for row in _query(fields, "csv,noheader")]


def gpu_memory_used() -> int:
    """Return the memory in use on all GPUs, in bytes; 0 without any."""
    # In MiB without its unit.
    rows = _query(("memory.used",), "csv,noheader,nounits")
    return sum(int(row[0]) for row in rows if row[0].isdigit()) << 20


def _query(fields: Sequence[str], form: str) -> list[list[str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", f"--format={form}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return []
    if answer.returncode != 0:
        return []
    return [line.split(", ") for line in answer.stdout.splitlines() if line.strip()]
