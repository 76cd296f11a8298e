"""The surroundings of a process that carries out a step: environment, device, Airflow task."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from tuneline.code_identity import library_identity

_REPORTED_PACKAGES = (
    "torch transformers peft trl bitsandbytes datasketch great-expectations onnxruntime "
    "presidio-analyzer mlflow wandb gguf xllamacpp tensorrt-llm boto3 apache-airflow"
).split()


def environment() -> dict[str, Any]:
    """Return Python, package versions, device and code of this process.

    `packages` has those that matter most; `packages_sha256` identifies the list of all, see
    `all_packages`.
    """
    installed = all_packages()
    return {
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in _REPORTED_PACKAGES if name in installed},
        "packages_sha256": hash_packages(installed),
        "device": device(),
        "cores": os.cpu_count(),
        "code": own_code(),
    }


@cache
def all_packages() -> dict[str, str]:
    """Return the version of every package that this process could import, by name."""
    found: dict[str, str] = {}
    # The first folder of the path that has a package is the one that it is imported from.
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def hash_packages(packages: Mapping[str, str]) -> str:
    """Return the SHA-256 of a list of packages."""
    return hashlib.sha256(json.dumps(dict(sorted(packages.items()))).encode()).hexdigest()


@cache
def own_code() -> dict[str, Any]:
    """Return the identity of the code of this process, without its note; see `library_identity`."""
    return {key: value for key, value in library_identity().items() if key != "note"}


def device() -> str:
    """Return the name of this process's accelerator, `cpu` without one.

    Torch is asked only if the step has loaded it, since importing it takes seconds.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "cpu"


def airflow_identity() -> dict[str, Any] | None:
    """Return the Airflow task of this process, as the DAG passed it on; None without one."""
    dag_id = os.environ.get("TUNELINE_AIRFLOW_DAG_ID")
    if not dag_id:
        return None
    return {
        "dag_id": dag_id,
        "run_id": os.environ.get("TUNELINE_AIRFLOW_RUN_ID", ""),
        "task_id": os.environ.get("TUNELINE_AIRFLOW_TASK_ID", ""),
        "try_number": int(os.environ.get("TUNELINE_AIRFLOW_TRY_NUMBER", "1")),
    }
