"""The stack's MLflow: a server on loopback over one SQLite file, which pods never open."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from tuneline.errors import UserError
from tuneline.stack.layout import LOOPBACK, Layout
from tuneline.stack.services import Service
from tuneline.training.tracking import local_mlflow

TRACKING = "mlflow"
PORT_SETTING = "TUNELINE_TRACKING_PORT"

# Nothing waits for it, and on a small machine the rest of the stack starts at the same time.
_NICENESS = 10


def foreign_server() -> str | None:
    """Return the MLflow server that the environment names; the stack then starts none.

    Raises:
        UserError: if the address holds a password, which would end up in files that others read.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and urlsplit(uri).password:
        raise UserError(
            "MLFLOW_TRACKING_URI holds a password; leave user and password out of it and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri or None


def wanted(layout: Layout) -> bool:
    """Return True if this stack starts MLflow; pods of a cluster could not reach it."""
    return layout.kubeconfig is None and foreign_server() is None


def pod_environment(layout: Layout) -> dict[str, str]:
    """Return the environment variables by which local pods find MLflow."""
    uri = foreign_server() or layout.tracking_url
    variables = {"MLFLOW_TRACKING_URI": uri}
    if pages := os.environ.get("TUNELINE_TRACKING_URL"):
        variables["TUNELINE_TRACKING_URL"] = pages
    return variables


def service(layout: Layout) -> Service:
    """Return the server: one worker, no job runner (seven more processes), no telemetry."""
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


def address(layout: Layout) -> str:
    """Return the address at which people watch training runs."""
    pages = os.environ.get("TUNELINE_TRACKING_URL") or foreign_server()
    if pages:
        return pages
    if wanted(layout):
        return layout.tracking_url
    return (
        "none; put MLFLOW_TRACKING_URI, a server that the cluster's pods can reach, into a secret "
        "that TUNELINE_POD_SECRETS names"
    )
