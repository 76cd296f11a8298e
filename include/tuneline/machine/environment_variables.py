"""The environment variables that this project reads or sets, in one table.

`docs/reference/environment.md` is written from it, and a test compares it with the code.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Literal

_log = logging.getLogger(__name__)

# The stack is `make up` and `make demo`; Airflow means its scheduler, workers and API server.
Reader = Literal["the stack", "Airflow", "steps", "the CLI", "benchmarks", "docker-compose.yaml"]


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: its name.
        readers: the processes that read it.
        default: what holds where it is not set, as text for a person.
        purpose: one sentence.
        internal: True if the project sets it itself, for its own processes.
    """

    name: str
    readers: tuple[Reader, ...]
    default: str
    purpose: str
    internal: bool = False


VARIABLES = (
    Variable(
        "TUNELINE_STORE",
        ("Airflow", "the CLI", "the stack"),
        "the folder of `TUNELINE_HOME`; none for the CLI and Airflow",
        "URI of the store: `s3://bucket/prefix` or `file:///folder`.",
    ),
    Variable(
        "TUNELINE_HOME",
        ("the stack", "steps"),
        "`.tuneline` in the checkout",
        "Folder of everything that the stack writes: store, database, logs, local pods.",
    ),
    Variable(
        "TUNELINE_CACHE",
        ("steps", "the CLI", "the stack"),
        "`~/.cache/tuneline`",
        "Folder of models, of the wheels that hold them, and of what is computed once for each.",
    ),
    Variable(
        "TUNELINE_KEYS",
        ("the CLI",),
        "that of the local stack",
        "File of API keys that `tuneline keys` works on.",
    ),
    Variable(
        "TUNELINE_LEDGER",
        ("the CLI",),
        "that of the local stack",
        "Usage ledger that `tuneline costs` works on: a file or a URL.",
    ),
    Variable(
        "TUNELINE_PRESETS",
        ("Airflow", "steps", "the CLI"),
        "`config/presets` in the checkout",
        "Folder of presets.",
    ),
    Variable(
        "TUNELINE_POLICY",
        ("Airflow", "steps", "the CLI"),
        "`config/policy.yaml` in the checkout",
        "File of the platform's limits. Every run records its text, and a production step whose "
        "image has another one is refused.",
    ),
    Variable(
        "TUNELINE_MODELS",
        ("Airflow",),
        "`config/models` in the checkout",
        "Folder of model files, one for each model that DAGs are made for.",
    ),
    Variable(
        "TUNELINE_UI_PORT", ("the stack",), "`8080`", "Port of the Airflow UI and its REST API."
    ),
    Variable("TUNELINE_GATEWAY_PORT", ("the stack",), "`8000`", "Port of the gateway."),
    Variable("TUNELINE_TRACKING_PORT", ("the stack",), "`5000`", "Port of MLflow."),
    Variable(
        "TUNELINE_TRACKING_URL",
        ("the stack", "steps"),
        "the address of the MLflow server",
        "Address under which browsers find MLflow, where it differs from the one that steps use.",
    ),
    Variable(
        "TUNELINE_LOG_SAMPLE_RATE",
        ("the stack", "docker-compose.yaml"),
        "`1`",
        "Share of the gateway's requests that is logged in the store, scrubbed; `0` logs none.",
    ),
    Variable(
        "TUNELINE_KUBECONFIG",
        ("the stack", "docker-compose.yaml"),
        "none: pods run as local processes",
        "Kubeconfig of a cluster that runs the pods.",
    ),
    Variable(
        "TUNELINE_IMAGE",
        ("Airflow", "docker-compose.yaml"),
        "`tuneline/ml:local`",
        "Image of the steps of runs that name no other (`pods.image`).",
    ),
    Variable(
        "TUNELINE_GPU_IMAGE",
        ("Airflow", "docker-compose.yaml"),
        "`TUNELINE_IMAGE`",
        "Image of their steps with a GPU (`pods.gpu_image`).",
    ),
    Variable(
        "TUNELINE_ENGINE_IMAGE",
        ("Airflow", "docker-compose.yaml"),
        "the engine's own; `TUNELINE_IMAGE` for llama.cpp",
        "Image of their steps that start the engine (`pods.engine_image`).",
    ),
    Variable(
        "TUNELINE_NAMESPACE",
        ("Airflow", "docker-compose.yaml"),
        "`default`",
        "Namespace of their pods (`pods.namespace`).",
    ),
    Variable(
        "TUNELINE_POD_SECRETS",
        ("Airflow",),
        "none",
        "Names of Kubernetes secrets, separated by commas, whose entries become environment "
        "variables of the pods.",
    ),
    Variable(
        "TUNELINE_POD_TEMPLATE",
        ("Airflow",),
        "none",
        "Pod template file that every pod starts from (tolerations, node selectors, volumes).",
    ),
    Variable(
        "TUNELINE_POD_POLL_SECONDS",
        ("Airflow",),
        "`5`",
        "Seconds between two looks at a pod or job; the stack looks more often at local pods.",
    ),
    Variable(
        "TUNELINE_WAIT_SECONDS",
        ("Airflow",),
        "`60`",
        "Seconds between two looks at a backfill or a run that another DAG waits for.",
    ),
    Variable(
        "TUNELINE_RETRY_SECONDS",
        ("Airflow",),
        "`20`",
        "Seconds before a failed step is tried again.",
    ),
    Variable(
        "TUNELINE_TRAINING_SERVICE",
        ("Airflow",),
        "`tuneline-training`",
        "Headless Service by which training pods of several nodes find each other.",
    ),
    Variable(
        "TUNELINE_THREADS",
        ("steps", "the CLI"),
        "all cores for training, all but one for engines",
        "CPU threads of training and of engines.",
    ),
    Variable(
        "TUNELINE_BENCH_DATA",
        ("benchmarks",),
        "`bench/data`",
        "Folder of the public data sets that `tuneline bench drift` measures with.",
    ),
    Variable(
        "TUNELINE_BENCH_PYTHON",
        ("benchmarks",),
        "`.venv-bench/bin/python`",
        "Python of the environment that holds the software compared with.",
    ),
    Variable(
        "TUNELINE_CONTRACT",
        ("steps",),
        "not checked",
        "Contract version of the DAG; a step refuses one that is not its own.",
        internal=True,
    ),
    *(
        Variable(
            f"TUNELINE_AIRFLOW_{name}",
            ("steps",),
            "none",
            f"{what} that started the step; its evidence names it.",
            internal=True,
        )
        for name, what in (
            ("DAG_ID", "The DAG"),
            ("RUN_ID", "The run of the DAG"),
            ("TASK_ID", "The task"),
            ("TRY_NUMBER", "The try of the task"),
        )
    ),
    Variable(
        "TUNELINE_AIRFLOW_LAST_TRY",
        ("steps",),
        "none",
        "`True` in the last try of the task that started the step.",
        internal=True,
    ),
    Variable(
        "TUNELINE_BASES",
        ("steps",),
        "none: base models lie in the store",
        "Folder of base models on a volume that pods share (`pods.model_cache`).",
        internal=True,
    ),
    Variable(
        "TUNELINE_RENDEZVOUS",
        ("steps",),
        "none",
        "`host:port` of the first training pod, in a job of several nodes.",
        internal=True,
    ),
    Variable(
        "TUNELINE_IMAGE_COMMIT",
        ("steps",),
        "none",
        "Git commit that an image was built from; the image sets it.",
        internal=True,
    ),
    Variable(
        "TUNELINE_AIRFLOW_IMAGE",
        ("docker-compose.yaml",),
        "`tuneline/airflow:local`",
        "Image of Airflow's services.",
    ),
    Variable(
        "TUNELINE_BIND",
        ("docker-compose.yaml",),
        "`127.0.0.1`",
        "Address that the published ports listen on.",
    ),
    Variable(
        "TUNELINE_DATA",
        ("docker-compose.yaml",),
        "`./data`",
        "Folder of datasets, which steps see as `/data`.",
    ),
    Variable(
        "TUNELINE_UI_URL",
        ("docker-compose.yaml",),
        "`http://localhost:8080`",
        "Address under which browsers find the Airflow UI.",
    ),
    Variable(
        "TUNELINE_TRACKING_HOSTS",
        ("docker-compose.yaml",),
        "the service's own names",
        "Host names that MLflow answers to.",
    ),
    Variable(
        "TUNELINE_GPU_SLOTS",
        ("docker-compose.yaml",),
        "`1`",
        "Slots of the pool that steps with a GPU share.",
    ),
    Variable(
        "TUNELINE_ADMIN_PASSWORD",
        ("docker-compose.yaml",),
        "none; `docker/compose/init.sh` writes one",
        "Password of the Airflow UI.",
    ),
    Variable(
        "TUNELINE_COMMIT",
        ("docker-compose.yaml",),
        "none; `docker/compose/init.sh` writes it",
        "Git commit that images are built from.",
    ),
    Variable(
        "TUNELINE_ML_EXTRAS",
        ("docker-compose.yaml",),
        "none",
        "File of further packages of the steps' and the gateway's image, such as "
        "`requirements/signing.txt`.",
    ),
    Variable(
        "TUNELINE_AIRFLOW_EXTRAS",
        ("docker-compose.yaml",),
        "none",
        "File of further packages of Airflow's image, such as `requirements/openlineage.txt`.",
    ),
    Variable(
        "TUNELINE_OPENLINEAGE_TRANSPORT",
        ("docker-compose.yaml",),
        "none: nothing is sent",
        'Server of lineage events, as in `{"type": "http", "url": "https://LINEAGE_SERVER"}`.',
    ),
)
_DEFAULTS = {variable.name: variable.default.strip("`") for variable in VARIABLES}


def seconds_from(name: str) -> float:
    """Return the duration that a variable states, in seconds.

    A value that is not a positive number is logged and replaced by the default: these
    variables are read while a DAG file is imported, where an error would hide the DAG.
    """
    default = float(_DEFAULTS[name])
    text = os.environ.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        _log.warning("%s is %r, not a positive number; %g seconds hold", name, text, default)
        return default
    return seconds
