"""The surroundings of a process that carries out a step: environment, device, Airflow task."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

_REPORTED_PACKAGES = (
    "torch transformers peft trl bitsandbytes datasketch great-expectations presidio-analyzer "
    "spacy mlflow wandb gguf xllamacpp tensorrt-llm boto3 apache-airflow"
).split()


def environment() -> dict[str, Any]:
    """Return Python, package versions and device of this process."""
    packages = {}
    for name in _REPORTED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": device(),
        "cores": os.cpu_count(),
    }


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
