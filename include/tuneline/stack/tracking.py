"""The stack's MLflow: a server on loopback over one SQLite file, so that pods never share the file.

Its pages show training runs while they train. Artifacts stay in the store.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from tuneline.errors import UserError
from tuneline.stack.layout import LOOPBACK, Layout
from tuneline.stack.processes import Service
from tuneline.training.tracking import local_mlflow

TRACKING = "mlflow"
PORT_SETTING = "TUNELINE_TRACKING_PORT"

# Nobody waits for it, and on a small machine the rest of the stack starts meanwhile.
_NICENESS = 10


def foreign_server() -> str | None:
    """The MLflow server that the user's shell names; ours is not started then.

    Raises:
        UserError: the address holds a password, which would stand in files that others read.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and urlsplit(uri).password:
        raise UserError(
            "MLFLOW_TRACKING_URI holds a password; leave user and password out of it and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri or None


def wanted(layout: Layout) -> bool:
    """Whether this stack has an MLflow of its own; pods of a cluster could not reach it."""
    return layout.kubeconfig is None and foreign_server() is None


def pod_environment(layout: Layout) -> dict[str, str]:
    """What tells local pods where to log to."""
    uri = foreign_server() or layout.tracking_url
    told = {"MLFLOW_TRACKING_URI": uri}
    if pages := os.environ.get("TUNELINE_TRACKING_URL"):
        told["TUNELINE_TRACKING_URL"] = pages
    return told


def service(layout: Layout) -> Service:
    """The server: one worker, no jobs (seven processes more), no telemetry."""
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    local_mlflow.note_server(layout.mlflow, layout.tracking_url)
    python = str(layout.ml_bin / "python")
    options = {
        "--backend-store-uri": local_mlflow.database_uri(layout.mlflow),
        "--default-artifact-root": "mlflow-artifacts:/",
        "--host": LOOPBACK,
        "--port": str(layout.tracking_port),
        "--workers": "1",
    }
    argv = ["nice", "-n", str(_NICENESS), python, "-m", "mlflow", "server", "--no-serve-artifacts"]
    argv += [word for option in options.items() for word in option]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
    env = {
        **kept,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    notes = {"port": layout.tracking_port, "url": layout.tracking_url}
    return Service(TRACKING, argv, env, layout.mlflow, notes)


def shown(layout: Layout) -> str:
    """Where people watch training runs."""
    pages = os.environ.get("TUNELINE_TRACKING_URL") or foreign_server()
    if pages:
        return pages
    if wanted(layout):
        return layout.tracking_url
    return "none; set MLFLOW_TRACKING_URI to a server that the cluster's pods can reach"
